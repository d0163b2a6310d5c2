"""What `:eval` shows: the figures of one or two models on a file, and the worst items."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.evaluation import BadLine, Kind
from minillm_repl.evaluation.figures import QuestionFigures, TextFigures
from minillm_repl.evaluation.statistics import Calibration, Difference, McNemar, Rate
from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES, MODEL, WARNING
from minillm_repl.render.drawing import bar, fit_to_width, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import NARROW, plain_table
from minillm_repl.safetext import safe_line
from minillm_repl.views.base import View

_LISTED_BAD = 5  # lines that could not be measured and are named on the screen
_BAR = 20  # cells


@dataclass(frozen=True, kw_only=True)
class EvalView(View):
    """One or two models on a file. Of `questions` and `texts`, the one of its kind has a figure for
    each model; both are empty where nothing was measured.
    """

    file: str
    kind: Kind
    names: tuple[str, ...]  # of the models
    chat: tuple[bool, ...]  # whether each gets the prompts through its chat template
    space: bool  # whether a space was put between prompt and choice
    max_tokens: int  # of an answer
    total: int  # questions, or tokens of the text
    done: int  # those that the figures are over
    stopped: str  # why not all were measured; empty: they were
    bad: tuple[BadLine, ...]  # the first lines that could not be measured
    bad_count: int
    questions: tuple[QuestionFigures, ...] = ()
    texts: tuple[TextFigures, ...] = ()
    mcnemar: McNemar | None = None  # of two models on questions
    difference: Difference | None = None  # of two models on a text
    items: tuple[dict[str, Any], ...] = ()  # what each model makes of each question

    def draw(self, width: int) -> RenderableType:
        """Return the figures, and the items that are worst."""
        return draw(self, width)


def draw(view: EvalView, width: int) -> RenderableType:
    """Return the figures of each model, what compares two of them, and the worst items."""
    kinds = {
        "choices": _("multiple choice"),
        "answers": _("written answers"),
        "text": _("text"),
    }
    more = " · ".join((kinds[view.kind], *view.names))
    parts: list[RenderableType] = [title(_("evaluation of {file}", file=view.file), more)]
    parts += [Text(line, style) for line, style in _conditions(view)]
    parts.append(_figures(view, width))
    parts += _comparison(view)
    if len(view.names) == 1 and view.questions:
        calibration = view.questions[0].calibration
        parts += _calibration(calibration, width) if calibration else []
        parts += _worst_items(view, width)
    if len(view.names) == 1 and view.texts:
        parts += _worst_lines(view.texts[0], width)
    return Group(*parts)


def _conditions(view: EvalView) -> Iterator[tuple[str, str]]:
    """Yield what was measured, and how: each line with its style."""
    if view.stopped:
        unit = _("tokens") if view.kind == "text" else _("questions")
        yield (
            _("{why}: the figures are over {done:,} of {total:,} {unit}", why=view.stopped,
              done=view.done, total=view.total, unit=unit),
            WARNING,
        )  # fmt: skip
    if view.bad_count:
        yield (
            _n("{n:,} line could not be measured", "{n:,} lines could not be measured",
               view.bad_count),
            WARNING,
        )  # fmt: skip
        for each in view.bad[:_LISTED_BAD]:
            yield _("line {line}: {why}", line=each.line, why=each.why), WARNING
        if view.bad_count > _LISTED_BAD:
            yield _("and {n:,} more", n=view.bad_count - _LISTED_BAD), WARNING
    if view.kind == "text":
        for name, figures in zip(view.names, view.texts, strict=False):
            yield _windows(name if len(view.names) > 1 else "", figures), FIGURES
        return
    templates = [_("chat template used") if each else _("no chat template") for each in view.chat]
    if len(set(templates)) > 1:
        templates = [f"{name}: {each}" for name, each in zip(view.names, templates, strict=True)]
    facts = [*dict.fromkeys(templates)]
    if view.kind == "answers":
        facts.append(_("greedy, at most {n:,} tokens", n=view.max_tokens))
    elif not all(view.chat):
        facts.append(_("a space before choices") if view.space else _("no space before choices"))
    yield " · ".join(facts), FIGURES


def _windows(name: str, figures: TextFigures) -> str:
    found = figures.result
    facts = [
        _n(
            "{n:,} window of {window:,} tokens, stride {stride:,}",
            "{n:,} windows of {window:,} tokens, stride {stride:,}",
            found.windows,
            window=found.window,
            stride=found.stride,
        ),
        _("{start} before the first token", start=safe_line(found.start))
        if found.start
        else _("no start token: the first token is not counted"),
    ]
    if found.unknown:
        facts.append(_("{n:,} characters not in the vocabulary, left out", n=found.unknown))
    return (f"{name}: " if name else "") + " · ".join(facts)


# -- figures


def _figures(view: EvalView, width: int) -> Table:
    shown = [fit_to_width(name, min(cell_len(name), max(8, width // 3))) for name in view.names]
    table = plain_table("", *shown, right=range(1, len(shown) + 1), wrap=())
    rows = _text_rows(view.texts) if view.texts else _question_rows(view)
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _question_rows(view: EvalView) -> Iterator[tuple[str, list[str]]]:
    found = view.questions
    yield _("accuracy"), [_rate(each.accuracy) for each in found]
    for name, rates in (
        (_("per byte"), [each.per_byte for each in found]),
        (_("per character"), [each.per_character for each in found]),
    ):
        if all(rates):
            yield name, [_rate(each) for each in rates if each]
    chances = [each.chance for each in found if each.chance is not None]
    if chances:
        yield _("chance"), [percent(each) for each in chances]
    errors = [each.calibration.ece for each in found if each.calibration]
    if errors:
        yield _("ECE"), [f"{each:.3f}" for each in errors]
    yield _("right"), [f"{each.accuracy.right:,}/{each.accuracy.count:,}" for each in found]


def _rate(rate: Rate) -> str:
    return f"{rate.share:.1%} ({rate.low * 100:.1f}–{rate.high * 100:.1f})"


def _text_rows(found: tuple[TextFigures, ...]) -> Iterator[tuple[str, list[str]]]:
    yield _("perplexity"), [f"{each.perplexity:,.3f}" for each in found]
    yield (
        _("bits per byte"),
        ["–" if each.bits_per_byte is None else f"{each.bits_per_byte:.4f}" for each in found],
    )
    yield _("tokens"), [f"{each.result.tokens:,}" for each in found]
    yield _("bytes"), [f"{each.result.size:,}" for each in found]


def _comparison(view: EvalView) -> list[RenderableType]:
    if view.mcnemar:
        found = view.mcnemar
        line = _(
            "only {ours} right: {first:,} · only {theirs} right: {second:,} · "
            "McNemar's exact test p = {p:.3g}",
            ours=view.names[0], theirs=view.names[1], first=found.only_first,
            second=found.only_second, p=found.p,
        )  # fmt: skip
        return [Text(line)]
    if view.difference:
        found_difference = view.difference
        line = _(
            "{ours} − {theirs}: {value:+.4f} bits per byte ({low:+.4f} to {high:+.4f}) over the "
            "same {lines:,} lines",
            ours=view.names[0], theirs=view.names[1], value=found_difference.value,
            low=found_difference.low, high=found_difference.high, lines=found_difference.lines,
        )  # fmt: skip
        return [Text(line)]
    return []


# -- one model


def _calibration(found: Calibration, width: int) -> list[RenderableType]:
    table = plain_table(_("confidence"), _("questions"), _("right"), "", right=(1, 2), wrap=())
    cells = _BAR if width >= NARROW else 0
    for each in found.bins:
        table.add_row(
            f"{each.low * 100:.0f}–{each.high * 100:.0f}%", f"{each.count:,}",
            percent(each.right), Text(bar(each.right, cells), MODEL),
        )  # fmt: skip
    legend = _("share of the chosen answer, and how many are right")
    return [Text(), title(_("calibration"), legend), table]


def _worst_items(view: EvalView, width: int) -> list[RenderableType]:
    worst = view.questions[0].worst
    if not worst:
        return []
    is_wide = width >= NARROW
    legend = (
        _("share of each among the choices")
        if view.kind == "choices"
        else _("probability of what the model wrote")
    )
    texts = [[_("answer"), *(each.answer for each in worst)],
             [_("model"), *(each.given or _("(nothing)") for each in worst)],
             [_("prompt"), *(each.prompt for each in worst)]][: 3 if is_wide else 2]  # fmt: skip
    wants = [max(cell_len(safe_line(text)) for text in column) for column in texts]
    cells = _share_out(wants, width - (37 if is_wide else 12))
    heads = [_("line"), texts[0][0], *([""] * is_wide), texts[1][0], *([""] * is_wide)]
    heads += [_("prompt")] * is_wide
    table = plain_table(*heads, right=(0, 2, 4) if is_wide else (0,), wrap=())
    for each in worst:
        row = [str(each.line), _short(each.answer, cells[0])]
        row += [_probability(each.answer_prob)] * is_wide
        row.append(_short(each.given or _("(nothing)"), cells[1]))
        if is_wide:
            row += [_probability(each.given_prob), _short(each.prompt, cells[2], end=True)]
        table.add_row(*row)
    return [Text(), title(_("worst questions"), legend if is_wide else ""), table]


def _share_out(wants: list[int], room: int) -> list[int]:
    """Return the widths of columns in at most `room` cells: the widest give way first."""
    cells = [min(want, max(room, 3 * len(wants))) for want in wants]
    while sum(cells) > max(room, 3 * len(wants)):
        cells[cells.index(max(cells))] -= 1
    return cells


def _probability(value: float | None) -> str:
    return "" if value is None else percent(value)


def _worst_lines(figures: TextFigures, width: int) -> list[RenderableType]:
    if len(figures.worst) < 2:
        return []
    table = plain_table(_("line"), _("bits/byte"), _("text"), right=(0, 1), wrap=())
    for each in figures.worst:
        table.add_row(str(each.line), f"{each.bits_per_byte:.2f}", _short(each.text, width - 24))
    return [Text(), title(_("most unlikely lines")), table]


def _short(text: str, cells: int, *, end: bool = False) -> str:
    """Return a text in at most so many cells; with `end`, its end, which is what was continued."""
    line = safe_line(text)
    if cell_len(line) <= cells:
        return line
    if not end:
        return fit_to_width(line, cells)
    return "…" + fit_to_width(line[::-1], cells - 1).rstrip("…")[::-1]
