"""`:canon`: what Canon layers mix into a token from the three tokens before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.model.config import CANON_TOKENS
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.render.drawing import MAX_LABEL_WIDTH, bar, fit_to_width, title
from minillm_repl.render.tables import TABLE_GAP, plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, find_place, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_NUMBER = 5  # cells of a norm: `0.123`


@dataclass(frozen=True)
class MixedRow:
    """What one Canon layer hands to attention or to the MLP of its block, at one position."""

    layer: int
    part: str  # that reads it: `attention` or `feed-forward`
    # L2 norms, as shares of the norm of what went in: of what comes from the token itself, then
    # from the one before it, and so on; there are fewer near the start of a text
    shares: tuple[float, ...]
    mixed: float  # of their sum


@dataclass(frozen=True, kw_only=True)
class CanonView(View, Truncation):
    """What the Canon layers mix into one token. Positions count from 0."""

    position: int
    tokens: tuple[Token, ...]
    rows: tuple[MixedRow, ...]  # none, where the model has no Canon layers

    def draw(self, width: int) -> RenderableType:
        """Return a row for each Canon layer: how much comes from each token."""
        where = _(
            "into {token}, position {position}",
            token=self.tokens[-1].label,
            position=self.position,
        )
        heading = title(_("Canon layers"), where)
        if not self.rows:
            none = _(
                "This model has none: its attention and its MLPs read each token by itself. "
                "`:train FILE new arch=canon` trains one that has them."
            )
            return Group(heading, Text(none))
        legend = _(
            "from each token: the L2 norm of what is mixed in, relative to the norm of the "
            "token's own vector before · mixed: that of the sum"
        )
        return Group(heading, self._table(width), Text(legend, FIGURES))

    def _table(self, width: int) -> RenderableType:
        sources = len(self.rows[0].shares)
        labels = [token.label for token in self.tokens[: -sources - 1 : -1]]
        room = max(_NUMBER + 2, (width - 30) // sources - TABLE_GAP)  # cells of a column
        names = [
            fit_to_width(label, min(room, MAX_LABEL_WIDTH)).rstrip()
            if not back
            else fit_to_width(f"−{back} {label}", room).rstrip()
            for back, label in enumerate(labels)
        ]
        table = plain_table(_("layer"), _("read by"), *names, _("mixed"), wrap=())
        most = max(share for row in self.rows for share in row.shares)
        for row in self.rows:
            cells = []
            for share in row.shares:
                picture = bar(share / most, room - _NUMBER - 1)
                cells.append(Text.assemble(f"{share:{_NUMBER}.2f} ", (picture, MODEL)))
            part = _("attention") if row.part == "attention" else _("MLP")
            table.add_row(str(row.layer), part, *cells, f"{row.mixed:{_NUMBER}.2f}")
        return table


@no_grad
def compute(inspected: InspectedText, position: int = -1) -> CanonView:
    """Return what each Canon layer takes from which token at a position.

    Raises UserError if there is no such position.
    """
    index = inspected.index_of(position)
    position, inspected = inspected.position_of(index), inspected.up_to(index)
    rows = []
    if inspected.config.has_canon_layers:
        cache = inspected.run_with_cache(".normed", last_only=True)[1]
        for name, normed in cache.items():  # in the order of the model; (time, d_model)
            _blocks, layer, part, _normed = name.split(".")
            is_first = part == "attention"
            module = "canon1" if is_first else "canon2"
            weight = inspected.model.get_parameter(f"blocks.{layer}.{module}.weight")
            parts = contributions(normed, weight)
            own = normed[-1].norm()
            shares = tuple(float(each.norm() / own) for each in parts)
            mixed = float(parts.sum(0).norm() / own)
            reader = part if is_first else "feed-forward"
            rows.append(MixedRow(int(layer), reader, shares, mixed))
    return CanonView(
        position=position,
        tokens=inspected.tokens,
        rows=tuple(rows),
        **inspected.window_fields,
    )


def contributions(normed: "Tensor", weight: "Tensor") -> "Tensor":
    """Return what a Canon layer makes of the last token from itself and those before: (n, d_model).

    `normed` is (time, d_model), its input; `weight` (4, d_model). Row i is from the token i places
    back; the rows sum to the layer's output.
    """
    recent = normed[-CANON_TOKENS:].flip(0)  # (n, d_model): the token itself first
    parts = weight[:].flip(0)[: len(recent)] * recent  # (n, d_model)
    parts[0] += recent[0]  # the residual connection
    return parts


@command(
    "canon",
    arguments=(PlaceArgument(bare=True), TextArgument()),
    json=True,
    aliases=("카논",),
    group="Look inside",
    example=":canon 날씨가 좋",
)
def canon(shell: "Shell", asked: Arguments) -> None:
    """Show what Canon layers mix into a token from those before.

    A new model here has two Canon layers in each block: one before attention, one before the MLP.
    Each adds to a token's normalized vector a mix of itself and the three tokens before it, every
    dimension with weights of its own (Allen-Zhu, 2025). So attention and MLP see a token with its
    neighbours. Canon layers write nothing into the residual stream themselves: in `:why`, what they
    mix is part of the heads and MLPs that read it.

    Each row is one Canon layer. The number of a token is the L2 norm of what comes from it,
    relative to the norm of the token's own vector before. Directions differ, so the numbers do not
    add up to the norm of the sum.

    The place is a position (@3, @-1) or a token (@날, where it was predicted); the default is the
    last position.
    """
    inspected = inspect_text(shell, asked.text)
    position, _token = find_place(inspected, asked.place)
    show(shell, compute(inspected, position), asked.output)
