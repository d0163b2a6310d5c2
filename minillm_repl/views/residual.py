"""`:residual`: the residual stream, layer by layer, as norms."""

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.render.drawing import bar, component_name, title
from minillm_repl.render.tables import TABLE_GAP, plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, find_place, inspect_text, show
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
        """Return a row for each layer: the norms of its two updates and of the stream after it."""
        layers, (low, high) = self._by_layer(), self._ends()
        headings = _("layer"), _("attention"), _("cos"), _("MLP"), _("cos"), _("residual")
        number_width = max(len(f"{max(row.added, row.stream):,.2f}") for row in self.rows)
        widths = max(cell_len(name) for name, _rows in layers), *[number_width, 5] * 2, number_width
        sizes = [max(cell_len(head), size) for head, size in zip(headings, widths, strict=True)]
        # A small terminal has room for the norms only.
        is_narrow = sum(sizes) + len(sizes) * TABLE_GAP + 6 > width
        columns = (0, 1, 3, 5) if is_narrow else range(6)
        gap = 1 if is_narrow else TABLE_GAP
        taken = sum(sizes[column] + gap for column in columns)
        cells = min(30, max(0 if is_narrow else 4, width - taken - 2 * (not is_narrow)))
        shown = [headings[column] for column in columns]
        table = plain_table(*shown, "", right=range(len(shown)), wrap=(), narrow=is_narrow)
        for name, rows in layers:
            updates = {row.place.rpartition(" ")[2]: row for row in rows}
            stream = rows[-1].stream
            share = log(stream / low) / log(high / low) if stream > 0 and high > low else 0.0
            row = (
                name, *_update(updates.get("attention") or updates.get("convolution")),
                *_update(updates.get("feed-forward")),
                f"{stream:,.2f}",
            )  # fmt: skip
            table.add_row(*(row[column] for column in columns), Text(bar(share, cells), MODEL))
        where = _(
            "at {token}, position {position}", token=self.tokens[-1].label, position=self.position
        )
        legends = [
            _("attention, MLP: L2 norms of what they add")
            if is_narrow
            else _(
                "attention, MLP: L2 norms of what they add · cos: with the residual stream before "
                "it (+1 reinforces, 0 orthogonal, −1 cancels)"
            ),
            _(
                "residual: L2 norm after the layer; its bar is logarithmic, from {low:.3g} to "
                "{high:.3g}",
                low=low,
                high=high,
            ),
        ]
        return Group(title(_("residual stream"), where), table, Text("\n".join(legends), FIGURES))

    def _by_layer(self) -> list[tuple[str, list[StreamRow]]]:
        """Return the rows of each layer, and by themselves the embedding and interventions."""
        groups: dict[str, list[StreamRow]] = {}
        for row in self.rows:
            layer = row.place.split()[0]
            name = layer if layer.isdecimal() else component_name(row.place)
            groups.setdefault(name, []).append(row)
        return list(groups.items())

    def _ends(self) -> tuple[float, float]:
        """Return where the bars begin and end: half the smallest norm, and the largest."""
        norms = [row.stream for row in self.rows if row.stream > 0] or [1.0]
        return min(norms) / 2, max(norms)


def _update(row: StreamRow | None) -> tuple[str, str]:
    """Return the norm and the cosine of what a part has added, if there is such a part."""
    return ("", "") if row is None else (f"{row.added:,.2f}", f"{row.aligned:+.2f}")


@no_grad
def compute(inspected: InspectedText, position: int = -1) -> ResidualView:
    """Return the norms of the residual stream at a position, and of what is added to it.

    Raises UserError if there is no such position.
    """
    import torch

    index = inspected.index_of(position)
    position, inspected = inspected.position_of(index), inspected.up_to(index)
    _logits, cache = inspected.run_with_cache(
        "embedding", "attention.out", "residual.mid", "mlp.out", "residual", last_only=True, rows=1
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
        position=position,
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
    arguments=(PlaceArgument(bare=True), TextArgument()),
    json=True,
    aliases=("잔차",),
    group="Look inside",
    example=":residual 날씨가 좋",
)
def residual(shell: "Shell", asked: Arguments) -> None:
    """Show the residual stream, layer by layer.

    The residual stream is the vector that runs through all layers, here at one position. Each
    attention and each MLP adds to it: there is a row for each layer.

    attention, MLP: the L2 norm of what is added. residual: the L2 norm of the sum after the layer;
    its bar is logarithmic. No norm is centred or normalized.

    cos: the cosine of the update with the residual stream before it. +1 reinforces, 0 is
    orthogonal, −1 cancels. In models with parallel attention and MLP (GPT-NeoX), it is the stream
    that both of them read.

    The place is a position (@3, @-1) or a token (@날, where it was predicted); the default is the
    last position.
    """
    inspected = inspect_text(shell, asked.text)
    position, _token = find_place(inspected, asked.place)
    show(shell, compute(inspected, position), asked.output)
