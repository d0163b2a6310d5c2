"""`:heads composition`: which heads read what earlier heads write (Elhage et al., 2021)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, title
from minillm_repl.render.tables import plain_table
from minillm_repl.views.base import View
from minillm_repl.views.circuits import Matrices, matrices
from minillm_repl.views.inspected_text import check_layer, no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel

OnProgress = Callable[[float], None]  # called with the share that is done, 0 to 1
_KINDS = ("Q", "K", "V")
_ROWS = 14  # pairs that are listed
_KEPT = 100  # pairs of each kind that a view has


@dataclass(frozen=True)
class Pair:
    """A head whose output another one reads."""

    writer: tuple[int, int]  # (layer, head)
    reader: tuple[int, int]
    score: float  # ‖W_OV · W‖ / (‖W_OV‖ · ‖W‖), Frobenius norms


@dataclass(frozen=True)
class CompositionView(View):
    """How strongly heads read what earlier heads write. Layers and heads count from 0."""

    model: str
    head: tuple[int, int] | None  # the one whose pairs are listed; None for all
    pairs: int  # of each kind, of which the strongest are listed
    random: float  # the score of matrices with no relation: √(mean square), 1 / √d_model
    q: tuple[Pair, ...]  # the largest score first
    k: tuple[Pair, ...]
    v: tuple[Pair, ...]

    def draw(self, width: int) -> RenderableType:
        """Return the strongest pairs of each kind, side by side."""
        rows = _KEPT if width >= UNLIMITED_WIDTH else _ROWS
        table = plain_table(*(_("{kind}-composition", kind=kind) for kind in _KINDS), wrap=())
        for row in list(zip(*map(_cells, (self.q, self.k, self.v)), strict=True))[:rows]:
            table.add_row(*row)
        what = (
            _("heads of {model}", model=self.model)
            if self.head is None
            else _("head {place} of {model}", place=_name(self.head), model=self.model)
        )
        count = _(
            "composition: the strongest {n} of {all:,} pairs of each kind",
            n=min(rows, len(self.q)),
            all=self.pairs,
        )
        notes = [
            _("writer→reader: the reader is in a later layer · Q, K, V: what of it reads"),
            _(
                "score: ‖W_OV·W‖ / (‖W_OV‖·‖W‖) from the weights, 0 to 1, without RoPE · {random} "
                "for matrices with no relation (1/√d_model)",
                random=f"{self.random:.3f}",
            ),
        ]
        return Group(title(what, count), table, Text("\n".join(notes), FIGURES))


def _name(head: tuple[int, int]) -> str:
    return f"{head[0]}.{head[1]}"


def _cells(pairs: tuple[Pair, ...]) -> list[Text]:
    """Return `4.11→5.5  0.312` for each pair."""
    names = [f"{_name(each.writer)}→{_name(each.reader)}" for each in pairs]
    cells = max(map(cell_len, names), default=0)
    return [
        Text.assemble((f"{name:<{cells}}", TITLE), f" {each.score:.3f}")
        for name, each in zip(names, pairs, strict=True)
    ]


@no_grad
def composition(model: "LanguageModel", progress: OnProgress = lambda _share: None) -> "Tensor":
    """Return the composition scores of all pairs: (3, layer, head, layer, head), writer first.

    The first index is what reads: Q, K or V. A pair whose reader is in no later layer has 0.
    """
    import torch

    layers, heads = model.config.n_layers, model.config.n_heads
    scores = torch.zeros(len(_KINDS), layers, heads, layers, heads)
    writers: dict[int, Tensor] = {}  # by layer: (head · head_dim, d_model), each head of norm 1
    for layer in model.config.attention_layers:
        parts = matrices(model, layer)
        readers = [_unit(reader).flatten(0, 1) for reader in _readers(parts)]  # (h·d, d_model)
        for earlier, writer in writers.items():
            for kind, reader in enumerate(readers):
                product = (writer @ reader.T).view(heads, len(writer) // heads, heads, -1)
                scores[kind, earlier, :, layer] = product.square().sum((1, 3)).sqrt().cpu()
        left = torch.linalg.qr(parts.v).R @ parts.o  # (head, head_dim, d_model)
        writers[layer] = _unit(left).flatten(0, 1)
        progress((layer + 1) / layers)
    return scores


def _readers(parts: Matrices) -> "Iterator[Tensor]":
    """Yield what a head reads with its query, its key and its value: (head, head_dim, d_model).

    The circuit of a head is such a matrix times one with orthonormal rows, which changes no norm.
    """
    import torch

    yield torch.linalg.qr(parts.k).R @ parts.q.mT
    yield torch.linalg.qr(parts.q).R @ parts.k.mT
    yield torch.linalg.qr(parts.o.mT).R @ parts.v.mT


def _unit(circuits: "Tensor") -> "Tensor":
    """Return each matrix (head, ·, ·) divided by its Frobenius norm; of zeros, as it is."""
    norms = circuits.norm(dim=(-2, -1), keepdim=True)
    unit: Tensor = circuits / norms.where(norms > 0, norms + 1)
    return unit


def compute(
    model: "LanguageModel",
    name: str,
    head: tuple[int, int] | None = None,
    progress: OnProgress = lambda _share: None,
) -> CompositionView:
    """Return the strongest pairs of heads, or those of one head.

    Raises UserError if there is no such head, or if the model has one layer only.
    """
    if head is not None:
        check_layer(model.config, *head)
    if len(model.config.attention_layers) < 2:
        raise UserError(_("only one layer has heads: none of them reads what another one writes"))
    kinds, counts = [], 0
    for scores in composition(model, progress):
        found = _pairs(scores, head)
        counts = len(found)
        kinds.append(tuple(found[:_KEPT]))
    return CompositionView(name, head, counts, model.config.d_model**-0.5, *kinds)


def _pairs(scores: "Tensor", head: tuple[int, int] | None) -> list[Pair]:
    """Return all pairs of (layer, head, layer, head), or those of one head, strongest first."""
    layers, heads = scores.shape[:2]
    flat = scores.flatten()
    pairs = []
    for index in flat.argsort(descending=True, stable=True).tolist():
        writer, reader = divmod(index, layers * heads)
        pair = Pair(divmod(writer, heads), divmod(reader, heads), float(flat[index]))
        if pair.writer[0] < pair.reader[0] and head in (None, pair.writer, pair.reader):
            pairs.append(pair)
    return pairs
