"""`:lens`: the prediction that each layer would make, the logit lens (nostalgebraist, 2020)."""

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    UNLIMITED_WIDTH,
    bar,
    component_name,
    short_label,
    title,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import NARROW, WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, Choice, Option, TextArgument, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.settings import integer
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, find_place, inspect_place, inspect_text, show
from minillm_repl.views.inspected_text import (
    InspectedText,
    no_grad,
    topk_ids,
)
from minillm_repl.views.lens_maps import KINDS, load
from minillm_repl.views.lens_row import TOP, LensRow, draw_top, lens_row

_SHOWN_ROWS = 15  # on a screen of 24; :scroll and :export show all
_TINY = 1e-9  # probabilities below it count as equal

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell


@dataclass(frozen=True, kw_only=True)
class LensView(View, Truncation):
    """The logit lens at one position. Positions count from 0."""

    position: int
    tokens: tuple[Token, ...]  # up to the position
    answer: Token  # the token asked about, else the most likely one of the last row
    first: str  # the place from which on the answer stays the most likely; empty if it is not
    rows: tuple[LensRow, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each place: its top tokens, and how far it is from the final output."""
        answer = short_label(self.answer).plain
        bars = 16 if width >= WIDE else 8 if width >= NARROW else 0
        names = max(cell_len(component_name(row.place)) for row in self.rows)
        top_width = max(width - names - cell_len(answer) - bars - 28, 8)
        table = plain_table(
            _("after"), _("top tokens"), f"p({answer})", "", _("rank"), _("KL, nats"),
            right=(2, 4, 5), wrap=() if width >= NARROW else (0, 1), narrow=width < NARROW,
        )  # fmt: skip
        shown = self._shown(width)
        for row in shown:
            style = TITLE if row.place == self.first else ""
            table.add_row(
                Text(component_name(row.place), style), draw_top(row.top, top_width),
                percent(row.prob), Text(bar(row.prob, bars), MODEL),
                f"{row.rank:,}", f"{row.kl:.3f}",
            )  # fmt: skip
        subtitle = _(
            "next-token prediction read from each layer, after {token} (position {position})",
            token=self.tokens[-1].label,
            position=self.position,
        )
        conclusion = (
            _(
                "{token} is top-1 from {place} onwards",
                token=answer,
                place=component_name(self.first),
            )
            if self.first
            else _("{token} is not top-1 at the end", token=answer)
        )
        left_out = len(self.rows) - len(shown)
        if left_out:
            conclusion += " · " + _(
                "{n} rows in which p changes least are left out; :scroll shows all", n=left_out
            )
        return Group(title(_("logit lens"), subtitle), table, Text(conclusion, FIGURES))

    def _shown(self, width: int) -> list[LensRow]:
        """Return the rows, without those in which least changes where there are too many."""
        rows = list(self.rows)
        if width >= UNLIMITED_WIDTH:
            return rows

        def change(at: int) -> tuple[bool, float]:
            """How much a row differs from the one before it: in its top token, and in p."""
            row, before = rows[at], rows[at - 1]
            moved = abs(log(row.prob + _TINY) - log(before.prob + _TINY))
            return row.top[0].token != before.top[0].token or row.place == self.first, moved

        while len(rows) > _SHOWN_ROWS:  # the first and the last stay
            del rows[min(range(1, len(rows) - 1), key=change)]
        return rows


@no_grad
def compute(
    inspected: InspectedText, position: int = -1, top: int = TOP, token: int | None = None
) -> LensView:
    """Return the lens at a position: the last norm and the head, on each residual stream.

    The norm takes its statistics from the stream it is applied to. The last row is the model's own
    output. p and rank are those of `token`; without it, of the most likely one of the last row.
    Raises UserError if there is no such position.
    """
    index = inspected.index_of(position)
    position, inspected = inspected.position_of(index), inspected.up_to(index)
    logits, cache = inspected.run_with_cache(
        "embedding", "residual", "residual.mid", last_only=True, rows=1
    )  # (1, vocab); (1, d_model) each
    final = logits[0].double().log_softmax(-1)  # (vocab,)
    answer = topk_ids(final, 1)[0] if token is None else token

    rows = tuple(
        lens_row(inspected, hook_name, residual[-1], final, answer, top)
        for hook_name, residual in cache.items()
    )
    # The row after the last one whose top token is another.
    first = next((index for index in range(len(rows), 0, -1) if rows[index - 1].rank > 1), 0)
    return LensView(
        position=position,
        tokens=inspected.tokens,
        answer=Token.from_id(inspected.tokenizer, answer),
        first=rows[first].place if first < len(rows) else "",
        rows=rows,
        **inspected.window_fields,
    )


_FITTED = (PlaceArgument(bare=True), TextArgument())
_FIT = (
    Choice(*KINDS, name="kind"),
    Option("texts", integer(2, 100_000), None, "N"),
    Option("tokens", integer(8, 65_536), 64),
    Option("steps", integer(1, 1_000_000), 250),
    Words("file", "[FILE]", completion="file"),
)


@command(
    "lens",
    arguments=Forms(
        (PlaceArgument(bare=True), TextArgument()),
        ("grid", Choice(*KINDS, name="kind"), PlaceArgument(), TextArgument()),
        *((kind, *_FITTED) for kind in KINDS),
        ("fit", *_FIT),
    ),
    json=True,
    aliases=("렌즈",),
    group="Look inside",
    example=":lens 1 날씨가 좋",
)
def lens(shell: "Shell", asked: Arguments) -> None:
    """Show the next-token prediction at each layer (logit lens).

    This is the logit lens. It applies the final norm, with the statistics of each layer, and the
    output head to the residual stream. The last row is the model's real output.

    p and rank are those of the token that is most likely at the end, or of the one that follows the
    place in the text. KL is KL(final ‖ here) = Σ
    final · ln(final / here), in nats: the distance of this layer's distribution from the final one.

    `:lens grid` shows the most likely token of each layer at the last positions of the text, or up
    to a place, side by side.

    A fitted lens maps the stream of each layer before it is read. `:lens fit j FILE` fits the
    Jacobian lens on a text: the mean derivative of the last layer's stream, summed over this and
    all later positions, by that of each layer (without the first 16 positions, or a quarter of a
    shorter text, and the last one). `:lens fit tuned FILE` trains the tuned lens: an affine map for
    each layer, which begins as the identity and learns to predict the model's own output. Without
    FILE, both are fitted on samples of the model. `:lens j`, `:lens tuned` and `:lens grid j` show
    them. Beside each stand the logit lens and a control, whose maps differ from the identity by
    the same numbers in another order: where the control is as good, read nothing from the lens.
    Held out is measured on other texts of the same file. Ctrl-C ends the fit and keeps what it has.

    The place is a position (@3, @-1) or a token (@날, where it was predicted); the default is the
    last position.
    """
    from minillm_repl.views import lens_fit, lens_fitted, lens_grid

    if asked.keyword == "fit":
        if not asked.kind:
            raise UsageError(_("which lens? `:lens fit j FILE` or `:lens fit tuned FILE`"))
        maps = lens_fit.fit(shell, asked.kind, asked.file, asked.texts, asked.tokens, asked.steps)
        show(shell, lens_fitted.view_of(maps), asked.output)
        return
    kind = asked.keyword if asked.keyword in KINDS else asked.kind
    if asked.keyword == "grid":
        up_to_place, _token = inspect_place(shell, asked.text, asked.place)
        fitted = load(shell.require_model(), kind) if kind else None
        show(shell, lens_grid.compute(up_to_place, fitted), asked.output)
        return
    inspected = inspect_text(shell, asked.text)
    position, token = find_place(inspected, asked.place)
    if kind:
        fitted = load(shell.require_model(), kind)
        show(shell, lens_fitted.compute(inspected, fitted, position, token), asked.output)
        return
    show(shell, compute(inspected, position, token=token), asked.output)
