"""`:residual`: the residual stream, layer by layer, as norms."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.render.drawing import bar, component_name, title
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, differs, no_grad, place_name

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell


@dataclass(frozen=True)
class StreamRow:
    """The residual stream after one place, as L2 norms at one position."""

    place: str
    added: float  # the norm of what was added here; of the embedding itself in the first row
    stream: float  # the norm of the stream after that
    # cosine of what was added with the stream that the part has read; 0 in the first row
    aligned: float


@dataclass(frozen=True)
class ResidualView(View, Truncation):
    """The residual stream, layer by layer, at one position. Positions count from 0."""

    position: int
    tokens: tuple[Token, ...]
    rows: tuple[StreamRow, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each place: the norm of its update and of the stream after it."""
        bars = min(30, max(6, (width - 58) // 2))
        longest = max(row.stream for row in self.rows) or 1.0
        table = plain_table(
            _("after"), _("update"), "", _("residual"), "", _("cos"), right=(1, 3, 5), wrap=()
        )
        for row in self.rows:
            table.add_row(
                component_name(row.place),
                f"{row.added:,.2f}", Text(bar(row.added / longest, bars), MODEL),
                f"{row.stream:,.2f}", Text(bar(row.stream / longest, bars), MODEL),
                f"{row.aligned:+.2f}",
            )  # fmt: skip
        where = _(
            "at {token}, position {position}", token=self.tokens[-1].label, position=self.position
        )
        legend = _(
            "update and residual: L2 norms · cos: cosine of the update with the "
            "residual stream before it (+1 reinforces, 0 orthogonal, −1 cancels)"
        )
        return Group(title(_("residual stream"), where), table, Text(legend, FIGURES))


@no_grad
def compute(inspected: InspectedText) -> ResidualView:
    """Return the norms of the residual stream at the last position, and of what is added to it."""
    import torch

    _logits, cache = inspected.run_with_cache(
        "embedding", "attention.out", "residual.mid", "mlp.out", "residual", last_only=True
    )
    read = stream = torch.zeros_like(cache["embedding"][-1])  # (d_model,)
    rows = []
    for name, tensor in cache.items():
        if ".residual" in name:
            continue
        update = tensor[-1]  # (d_model,)
        # Where the two work in parallel, the MLP reads the stream that attention has read.
        if not (inspected.config.parallel_residual and name.endswith("mlp.out")):
            read = stream
        total = stream + update
        after = name.replace("attention.out", "residual.mid").replace("mlp.out", "residual")
        stream = cache[after][-1] if name != "embedding" and after in cache else total
        intervened = differs(stream, total)
        place = place_name(inspected, name)
        rows.append(_row(place, update, total if intervened else stream, read))
        if intervened:
            layer = name.split(".")[1]
            rows.append(_row(f"added after layer {layer}", stream - total, stream, total))
    return ResidualView(
        position=inspected.position_of(len(inspected.ids) - 1),
        tokens=inspected.tokens,
        rows=tuple(rows),
        **inspected.window_fields,
    )


def _row(place: str, update: "Tensor", stream: "Tensor", read: "Tensor") -> StreamRow:
    import torch

    cosine = torch.nn.functional.cosine_similarity(update, read, dim=0)
    return StreamRow(place, float(update.norm()), float(stream.norm()), float(cosine))


@command(
    "residual",
    arguments=(TextArgument(),),
    json=True,
    aliases=("잔차",),
    group="Look inside",
    example=":residual 날씨가 좋",
)
def residual(shell: "Shell", asked: Arguments) -> None:
    """Show the residual stream, layer by layer.

    The residual stream is the vector that runs through all layers, here at the last token. Each
    attention and each MLP adds to it.

    update: the L2 norm of what is added. residual: the L2 norm of the sum so far. Neither is
    centred or normalized.

    cos: the cosine of the update with the residual stream before it. +1 reinforces, 0 is
    orthogonal, −1 cancels. In models with parallel attention and MLP (GPT-NeoX), it is the stream
    that both of them read.
    """
    show(shell, compute(inspect_text(shell, asked.text)), asked.output)
