"""`:lens`: the prediction that each layer would make, the logit lens (nostalgebraist, 2020)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import bar, component_name, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import NARROW, WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, find_place, inspect_place, inspect_text, show
from minillm_repl.views.inspected_text import (
    InspectedText,
    Likely,
    kl_divergence,
    no_grad,
    place_name,
    rank,
    topk,
    topk_ids,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_TOP = 5  # tokens that a row lists


@dataclass(frozen=True, kw_only=True)
class LensRow:
    """What the model would predict if it stopped at one place of the residual stream."""

    # `embedding`, `0 attention`, `0 feed-forward`; `0 block` where the two work in parallel
    place: str
    top: tuple[Likely, ...]
    prob: float  # of the answer
    rank: int  # of the answer, 1 = most likely
    kl: float  # nats, KL(final ‖ here) = Σ final · ln(final / here)


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
            right=(2, 4, 5), wrap=() if width >= NARROW else (0, 1),
        )  # fmt: skip
        for row in self.rows:
            style = TITLE if row.place == self.first else ""
            table.add_row(
                Text(component_name(row.place), style), _draw_top(row.top, top_width),
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
        return Group(title(_("logit lens"), subtitle), table, Text(conclusion, FIGURES))


def _draw_top(top: tuple[Likely, ...], width: int) -> Text:
    """Return as many of the tokens as fit in `width` cells; the first is always there."""
    labels = Text()
    for likely in top:
        label = short_label(likely.token)
        if labels and labels.cell_len + 1 + label.cell_len > width:
            break
        labels.append(" " if labels else "").append_text(label)
    return labels


@no_grad
def compute(
    inspected: InspectedText, position: int = -1, top: int = _TOP, token: int | None = None
) -> LensView:
    """Return the lens at a position: the last norm and the head, on each residual stream.

    The norm takes its statistics from the stream it is applied to. The last row is the model's own
    output. p and rank are those of `token`; without it, of the most likely one of the last row.
    Raises UserError if there is no such position.
    """
    index = inspected.index_of(position)
    position, inspected = inspected.position_of(index), inspected.up_to(index)
    logits, cache = inspected.run_with_cache(
        "embedding", "residual", "residual.mid", last_only=True
    )  # (1, vocab); (time, d_model) each
    final = logits[0].double().log_softmax(-1)  # (vocab,)
    answer = topk_ids(final, 1)[0] if token is None else token

    def read(hook_name: str, residual: "Tensor") -> LensRow:
        here = inspected.model.unembed(residual[-1]).double().log_softmax(-1)  # (vocab,)
        return LensRow(
            place=place_name(inspected, hook_name),
            top=topk(inspected.tokenizer, here, top),
            prob=float(here[answer].exp()),
            rank=rank(here, answer),
            kl=kl_divergence(final, here),
        )

    rows = tuple(read(hook_name, residual) for hook_name, residual in cache.items())
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


@command(
    "lens",
    arguments=Forms(
        (PlaceArgument(bare=True), TextArgument()), ("grid", PlaceArgument(), TextArgument())
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

    The place is a position (@3, @-1) or a token (@날, where it was predicted); the default is the
    last position.
    """
    if asked.keyword == "grid":
        from minillm_repl.views.lens_grid import compute as compute_grid

        up_to_place, _token = inspect_place(shell, asked.text, asked.place)
        show(shell, compute_grid(up_to_place), asked.output)
        return
    inspected = inspect_text(shell, asked.text)
    position, token = find_place(inspected, asked.place)
    show(shell, compute(inspected, position, token=token), asked.output)
