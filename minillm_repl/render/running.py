"""Draws a generation as it runs: text tinted by probability, or one line for each token."""

from collections.abc import Iterable

from rich.text import Text

from minillm_repl.generate import AnswerEvent, Candidate, Finished, Inserted, Step
from minillm_repl.language import _
from minillm_repl.render.console import CHOSEN, FIGURES, MODEL, Screen
from minillm_repl.render.drawing import fit_to_width
from minillm_repl.render.generation import known_percent
from minillm_repl.render.listing import UNKNOWN, rank_text, visible_step, visible_token
from minillm_repl.safetext import safe

# From which probability on, the tint, and what says the same where there are no colours.
_BANDS = (
    (0.5, "green", ""),
    (0.2, "cyan", "underline"),
    (0.05, "yellow", "underline2"),
    (0.01, "magenta", "bold underline"),
    (0.0, "bold red", "reverse underline"),
)
_WIDE = 60  # columns from which a line has the wide columns
_GAP = 2  # cells between two columns
LINE_CANDIDATES = 4  # the next three, and the sampled one among them


def draw_coloured(events: Iterable[AnswerEvent], screen: Screen) -> Finished:
    """Draw a generation as running text, each part in the tint of its probability.

    The line is left open. The probability is the model's own. A text that became certain with
    several tokens has the tint of the least likely one.
    """
    shown, waiting = 0, list[float]()
    for event in events:
        if isinstance(event, Finished):
            screen.out.print(Text(safe(event.text[shown:]), MODEL), end="", soft_wrap=True)
            return event
        if isinstance(event, Inserted):
            screen.out.print(Text(safe(event.text), FIGURES), end="", soft_wrap=True)
            shown += len(event.text)
        if not isinstance(event, Step):
            continue
        prob = event.prob if event.model_prob is None else event.model_prob
        waiting += [] if prob is None else [prob]
        if event.text:
            style = tint(min(waiting), screen) if waiting else MODEL
            screen.out.print(Text(safe(event.text), style), end="", soft_wrap=True)
            screen.out.file.flush()
            waiting.clear()
        shown += len(event.text)
    raise AssertionError("a generation ends with Finished")


def tint(prob: float, screen: Screen) -> str:
    """Return the style of a probability: a colour, or an underline where there are none."""
    colour, underline = next(styles for least, *styles in _BANDS if prob >= least)
    return underline if screen.out.no_color or screen.out.color_system is None else colour


def legend(screen: Screen) -> Text:
    """Return what the tints mean."""
    parts: list[tuple[str, str]] = [(_("probability by the model: "), FIGURES)]
    for least, *_styles in _BANDS:
        words = f"≥{least:.0%}" if least else f"<{_BANDS[-2][0]:.0%}"
        parts += [(words, tint(least, screen)), (" ", "")]
    return Text.assemble(*parts)


def draw_lines(events: Iterable[AnswerEvent], screen: Screen) -> Finished:
    """Draw a line for each token: probability, rank, entropy, and the most likely others."""
    is_first = True
    for event in events:
        if isinstance(event, Finished):
            return event
        if not isinstance(event, Step):
            continue
        width = screen.out.width  # at each step: the terminal may have been resized
        if is_first:
            screen.out.print(lines_heading(width), no_wrap=True, overflow="crop")
            is_first = False
        screen.out.print(step_line(event, width), no_wrap=True, overflow="crop")
        screen.out.file.flush()
    raise AssertionError("a generation ends with Finished")


def lines_heading(width: int) -> Text:
    """Return the names of the columns of `step_line`."""
    names = (_("token"), _("p"), _("rank"), _("bits"))
    cells = [
        fit_to_width(name, size, right=place > 0)
        for place, (name, size) in enumerate(zip(names, _columns(width), strict=True))
    ]
    more = fit_to_width(_("most likely others"), max(0, _room(width))).rstrip()
    return Text((" " * _GAP).join([*cells, more]).rstrip(), FIGURES)


def step_line(step: Step, width: int) -> Text:
    """Return one token of a generation in a line; the columns are the same at each step.

    `bits` is the entropy of the model's distribution. As many of the next three as fit are shown.
    """
    prob = step.prob if step.model_prob is None else step.model_prob
    rank = rank_text(step.rank, step.listing.k if step.listing else 0)
    figures = (
        known_percent(prob),
        rank,
        UNKNOWN if step.entropy is None else f"{step.entropy:.2f}",
    )
    token, *sizes = _columns(width)
    line = Text(fit_to_width(visible_step(step), token), f"{CHOSEN} {MODEL}")
    for value, size in zip(figures, sizes, strict=True):
        line.append(" " * _GAP + f"{value:>{size}}")
    others = [each for each in step.top if not each.chosen][: LINE_CANDIDATES - 1]
    for each in others[: max(0, _room(width) + _GAP) // (_next_token(width) + 7 + _GAP)]:
        line.append(" " * _GAP + _next(each, _next_token(width)), FIGURES)
    return line


def _columns(width: int) -> tuple[int, int, int, int]:
    """Return the cells of token, probability, rank and entropy."""
    return (10, 6, 6, 5) if width >= _WIDE else (6, 6, 5, 5)


def _room(width: int) -> int:
    """Return the cells for the most likely others."""
    return width - sum(_columns(width)) - 4 * _GAP


def _next_token(width: int) -> int:
    """Return the cells of a token among the next ones; a space and a percentage follow it."""
    return 6 if width >= _WIDE else 3


def _next(candidate: Candidate, cells: int) -> str:
    prob = candidate.prob if candidate.model_prob is None else candidate.model_prob
    percentage = known_percent(prob)
    return f"{fit_to_width(visible_token(candidate), cells)} {percentage:>6}"
