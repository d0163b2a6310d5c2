"""Draws a generation: the text as it comes, or a table of candidates for each step; then one
line of figures.
"""

from collections.abc import Iterable
from math import floor, log2, log10
from time import monotonic

from rich.cells import cell_len
from rich.text import Text

from minillm_repl.generate import AnswerEvent, Finished, Inserted, Step
from minillm_repl.language import N_, _, _n
from minillm_repl.render.console import CHOSEN, DROPPED, FIGURES, GOOD, MODEL, TITLE, Screen
from minillm_repl.render.drawing import bar, fit_to_width
from minillm_repl.render.listing import (
    UNKNOWN,
    format_figures,
    source_lines,
    step_figures,
    visible_id,
    visible_step,
    visible_token,
)
from minillm_repl.render.tables import NARROW
from minillm_repl.render.wrapping import WordWrapper
from minillm_repl.safetext import safe, safe_line
from minillm_repl.tokenizer.truncation import TruncatedText

_FRAME = 1 / 60  # seconds: nobody sees more, and drawing must not hold a fast model back
_MIN_EXACT = 1e-5  # a smaller probability is said to be small, not how small
_UNKNOWN_SIZE = 99_999  # tokens of a vocabulary whose size a server does not tell
_TOKEN_WIDTH, _NARROW_TOKEN_WIDTH = 12, 8  # cells of a token in a table
_ID_FROM = 50  # columns of a terminal from which there is room for ids
_FINAL_WIDTH = 7  # cells of the probability of being sampled, or of `dropped`
_REASONS = {
    "length": N_("max-tokens reached"),
    "stop": N_("stop string reached"),
    "end": N_("end token reached"),
    "context": N_("the context is full"),
    "interrupt": N_("stopped by Ctrl-C"),
    "done": N_("the server says that it ends here"),
    "cut": N_("incomplete"),
    "format": N_("the format is complete"),
    "stuck": N_("no token of the vocabulary can go on with the format"),
}


class Stream:
    """Writes the completion in the model's colour as it comes, in frames.

    `before` is what stands before it in the line. At a terminal, lines break between words.
    """

    def __init__(self, screen: Screen, before: str = "") -> None:
        self._out = out = screen.out
        moves = out.is_terminal and out.file.isatty() and not out.is_dumb_terminal
        self._wrapper = WordWrapper(lambda: out.width, safe(before)) if moves else None
        self._pending: list[str] = []
        self._style = MODEL
        self._last_frame_time = 0.0

    def add(self, text: str, style: str = MODEL) -> None:
        """Take more text; draw if the last frame is old enough."""
        if style != self._style:
            self.flush()
            self._style = style
        self._pending.append(text)
        if monotonic() - self._last_frame_time >= _FRAME:
            self.flush()

    def flush(self) -> None:
        """Draw what is waiting."""
        # A text from a model may contain control characters of the terminal.
        text = safe("".join(self._pending))
        self._pending.clear()
        self._last_frame_time = monotonic()
        if text and self._wrapper:
            wrapped = Text(self._wrapper.feed(text), self._style)
            self._out.print_wrapped(Text(text, self._style), wrapped)
        elif text:
            self._out.print(Text(text, self._style), end="", soft_wrap=True)
        if text:
            self._out.file.flush()


def draw_text(events: Iterable[AnswerEvent], screen: Screen, before: str = "") -> Finished:
    """Draw a generation as running text after `before`; the line is left open."""
    stream = Stream(screen, before)
    shown = 0
    try:
        for event in events:
            if isinstance(event, Finished):
                stream.add(event.text[shown:])  # what was held back until now
                return event
            if isinstance(event, Step | Inserted):
                stream.add(event.text)
                shown += len(event.text)
    finally:
        stream.flush()
    raise AssertionError("a generation ends with Finished")


def draw_steps(
    events: Iterable[AnswerEvent], screen: Screen, prompt: str, samplers: str, vocab_size: int
) -> Finished:
    """Draw a table of candidates for each step, and the text so far.

    `samplers` names those that are on. The columns of all tables stand below each other.
    """
    text = ""
    for event in events:
        if isinstance(event, Finished):
            return event
        if isinstance(event, Inserted):
            text += event.text
        if not isinstance(event, Step):
            continue
        width = screen.out.width  # at each step: the terminal may have been resized
        text += event.text
        # In a narrow terminal the figures take two lines: a number is never cut.
        screen.out.print(step_title(event, prompt, text, width), overflow="fold")
        screen.out.print(
            step_table(event, samplers, width, vocab_size), no_wrap=True, overflow="crop"
        )
        screen.out.file.flush()
    raise AssertionError("a generation ends with Finished")


def step_title(step: Step, prompt: str, text: str, width: int) -> Text:
    """Return `step 3  +'좋' → 날씨가 좋` and, below, how unsure the model was and its surprise."""
    start = _("step {number}", number=step.index + 1) + "  "
    token = visible_step(step)
    full_text = safe_line(prompt) + safe_line(text)
    # The end of the text matters, so that is what is kept; halving is fast for a long one.
    max_cells = max(0, width - cell_len(f"{start}+'{token}' → …"))
    shown = full_text
    while cell_len(shown) > max_cells:
        shown = shown[max(1, (cell_len(shown) - max_cells) // 2) :]
    lines = [step_figures(step), *(source_lines(step.listing) if step.listing else [])]
    if step.format:
        lines.append(format_figures(step.format))
    prompt_part = max(0, len(shown) - len(safe_line(text)))
    return Text.assemble(
        (start, TITLE),
        "+'",
        (token, f"{TITLE} {MODEL}"),
        "' → ",
        "…" if len(shown) < len(full_text) else "",
        shown[:prompt_part],
        (shown[prompt_part:], MODEL),
        ("\n" + "\n".join(lines), FIGURES),
    )


def step_table(
    step: Step, samplers: str, width: int, vocab_size: int, marked_row: int | None = None
) -> Text:
    """Return the candidates: rank, token, id, the model's probability, and that drawn from.

    ▶ is before the row `marked`, counted from 0, or else before what was drawn.

    One Text of fixed columns: rich's Table measures every cell of every step, which costs ten times
    as long.
    """
    if not step.top:
        return Text()  # a server tells no number of this step
    ranks = _ranks(step)
    tokens = [visible_token(candidate) for candidate in step.top]
    ids = [visible_id(candidate.id) for candidate in step.top]
    # The same at each step, so that the columns do not jump.
    rank_width = max(2, len(str(vocab_size or _UNKNOWN_SIZE)))
    token_width = _TOKEN_WIDTH if width >= NARROW else _NARROW_TOKEN_WIDTH
    id_width = rank_width if width >= _ID_FROM else 0
    token, dropped = _("token"), _("dropped")
    final_width = max(_FINAL_WIDTH, cell_len(dropped))
    id_column = f"{'id':>{id_width}}  " if id_width else ""
    fixed = f"{'#':>{rank_width + 2}}  {fit_to_width(token, token_width)}  {id_column} "
    # A row is `fixed`, a percentage (6), a bar, the last column and a bar, with 5 spaces.
    numbers = 6 + final_width + 5
    # Cells of each bar: more than 40 tell no more, fewer than 4 are no bar.
    room = (width - cell_len(fixed) - numbers - 1) // 2
    bars = min(40, room) if room >= 4 else 0
    table = Text()
    table.append(f"{fixed}{fit_to_width(_model_heading(step), bars + 9)} {samplers}\n", FIGURES)
    table.append("─" * min(width, cell_len(fixed) + 2 * bars + numbers + 1) + "\n", FIGURES)
    rows = enumerate(zip(ranks, tokens, ids, step.top, strict=True))
    for row, (rank, token, id_, candidate) in rows:
        chosen = candidate.chosen if marked_row is None else row == marked_row
        style = CHOSEN if chosen else ("" if candidate.kept else DROPPED)
        final = fit_to_width(
            known_percent(candidate.prob) if candidate.kept else dropped, final_width, right=True
        )
        table.append(f"{'▶' if chosen else ' '}{rank:>{rank_width + 1}}  ", style)
        shown = fit_to_width(token, token_width)
        table.append(shown, f"{CHOSEN} {MODEL}" if chosen else style)
        id_cell = f"{id_:>{id_width}}  " if id_width else ""
        table.append(f"  {id_cell} {known_percent(candidate.model_prob):>6} ", style)
        table.append(f"{bar(candidate.model_prob or 0.0, bars):{bars}}", MODEL)
        table.append(f"   {final} ", style)
        table.append(bar(candidate.prob or 0.0, bars) + "\n", GOOD)
    return table


def _ranks(step: Step) -> list[str]:
    # The sampled token is added as the last row if it is not among the top ones.
    ranks = [str(rank) for rank in range(1, len(step.top) + 1)]
    if step.top[-1].chosen and step.rank != len(step.top):
        ranks[-1] = str(step.rank) if step.rank else f">{step.listing.k if step.listing else ''}"
    return ranks


def _model_heading(step: Step) -> str:
    is_unknown = step.listing is not None and step.listing.stage == "unknown"
    return _("server") if is_unknown else _("model")


def known_percent(probability: float | None) -> str:
    """Return a probability as a percentage; a dash for one that a server does not tell."""
    return UNKNOWN if probability is None else percent(probability)


def percent(probability: float) -> str:
    """Return a probability as a percentage; what rounds to nothing but is not says so."""
    # 0.05% is the smallest probability that one decimal does not show as 0.0%.
    return f"{probability:.1%}" if probability >= 0.0005 or probability == 0 else "<0.1%"


def exact_percent(probability: float) -> str:
    """Return a probability as a percentage with two digits if it is small: `0.0021%`.

    What is below 0.001% says so. `--json` has all digits.
    """
    is_small = 0 < probability < 0.001
    if 0 < probability < _MIN_EXACT:
        return "<0.001%"
    return f"{100 * probability:.2g}%" if is_small else percent(probability)


def percent_of_bits(bits: float) -> str:
    """Return 2^−bits as a percentage; of a small one, its first two digits and its power of ten."""
    if bits < -log2(_MIN_EXACT):
        return exact_percent(2.0**-bits)
    # By logarithms: the probability itself may be below the smallest float.
    tens = 2 - bits * log10(2)
    power = floor(tens)
    mantissa = f"{10 ** (tens - power):.1f}"
    return f"1.0e{power + 1:+03d}%" if mantissa == "10.0" else f"{mantissa}e{power:+03d}%"


def generation_summary(
    finished: Finished, seed: int, *, by_escape: bool = False, thoughts: str = ""
) -> str:
    """Return the line of figures after a generation; `by_escape`: Esc stopped it, not Ctrl-C.

    `thoughts` says how many of the tokens are thought, if any are.
    """
    facts = [_n("{n} token", "{n} tokens", finished.tokens)]
    facts += [thoughts] if thoughts else []
    if finished.tokens and finished.seconds:
        facts.append(_("{speed:,.0f} tokens/s", speed=finished.tokens / finished.seconds))
    reason = _(_REASONS[finished.reason])
    if by_escape and finished.reason == "interrupt":
        reason = _("stopped by Esc")
    facts.append(f"{reason}: {finished.detail}" if finished.detail else reason)
    return " · ".join([*facts, _("seed {seed}", seed=seed)])


def dropped_turns_note(turns: int, free: int, context: int) -> str:
    """Return what to say when a conversation's oldest turns no longer fit in the context.

    `free` tokens of the context are kept for the answer.
    """
    return _n(
        "the model no longer sees the oldest {n} turn: {free} of its {context} "
        "tokens are reserved for the answer",
        "the model no longer sees the oldest {n} turns: {free} of its "
        "{context} tokens are reserved for the answer",
        turns,
        context=context,
        free=free,
    )


def outgrown_context_note(tokens: int, window: TruncatedText) -> str:
    """Return the note on a text of `tokens` tokens that exceeds the context."""
    if not window.kept:
        return _(
            "the text exceeds the context: the model sees the last {seen} of its {tokens} tokens",
            tokens=tokens,
            seen=len(window.ids),
        )
    return _(
        "the text exceeds the context: the model sees the start token and the "
        "last {seen} of its {tokens} tokens",
        tokens=tokens,
        seen=len(window.ids) - 1,
    )
