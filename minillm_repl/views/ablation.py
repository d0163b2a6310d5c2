"""What takes a part of the model away: a head, a layer, a direction; and what stands in its place.

In the place of what a part writes stand zeros, its mean, or what it writes on another text
(resample). Mean and resample are of a reference: the text itself, a file, or samples of the model.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from minillm_repl.model.hooks import Hook
from minillm_repl.repl.arguments import INDEX, Argument, Values
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad

if TYPE_CHECKING:
    from torch import Tensor

How = Literal["zero", "mean", "resample"]
Piece = int | Literal["attention", "mlp"] | None
"""What of a layer: a head by its number, its attention, its MLP, or None for all that it adds."""

Instead = dict[str, "Tensor"]
"""What stands in the place of an activation, by the name of its hook: (time, ...), a row for each
position. Positions after the last have the rows once more, without the first.
"""

WRITES = "attention.z", "attention.out", "mlp.out"
_PART = re.compile(
    rf"l?({INDEX})(?:(?:\.|h)({INDEX})|\.(attention|attn|mlp))?(?=\s|$)", re.IGNORECASE
)


class PartArgument(Argument):
    """A layer, alone or with one of its parts: `2`, `2.1` or `L2H1`, `2.mlp`, `2.attention`."""

    def __init__(self) -> None:
        super().__init__(
            "LAYER[.HEAD|.mlp|.attention]", {"layer": None, "piece": None}, required=True
        )

    def take(self, text: str) -> tuple[Values, str]:
        """Read the part."""
        found = _PART.match(text)
        if found is None:
            return self.missing(text)
        layer, head, name = found.groups()
        piece: Piece = None if head is None else int(head)
        if name:
            piece = "mlp" if name.lower() == "mlp" else "attention"
        return {"layer": int(layer), "piece": piece}, text[found.end() :]


def hook_names(layer: int, piece: Piece) -> tuple[str, ...]:
    """Return the hooks at which a part of a layer writes."""
    ends: tuple[str, ...] = WRITES[:1]
    if not isinstance(piece, int):
        ends = {None: WRITES[1:], "attention": WRITES[1:2], "mlp": WRITES[2:]}[piece]
    return tuple(f"blocks.{layer}.{end}" for end in ends)


@no_grad
def means(texts: Sequence[InspectedText], names: Sequence[str], *, skip: int = 0) -> Instead:
    """Return the mean of each activation whose hook name ends in `names`: (1, ...).

    It is over all positions of all texts; the first `skip` of each text do not count. What is
    averaged is not kept, so a long text takes no more memory.
    """
    sums: dict[str, Tensor] = {}
    count = 0

    def add(name: str, tensor: "Tensor") -> "Tensor":
        if name.endswith(tuple(names)):
            total = tensor[0, skip:].sum(0)
            sums[name] = sums[name] + total if name in sums else total
        return tensor

    for text in texts:
        count += len(text.ids) - skip
        text.with_hook(add).logits(last_only=True)
    return {name: (total / max(count, 1))[None] for name, total in sums.items()}


def instead_hook(instead: Instead, piece: Piece = None, names: Sequence[str] = ()) -> Hook:
    """Return a hook that puts `instead` at the `names`, or zeros where it has nothing for a name.

    Of `attention.z`, only the head `piece` is replaced.
    """
    state: dict[str, Tensor] = {}

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name == "positions":
            state[name] = tensor
        if name not in names:
            return tensor
        rows = rows_at(instead, name, state["positions"], tensor)  # (time, ...)
        if not isinstance(piece, int):
            return rows.expand_as(tensor)
        ablated = tensor.clone()  # (batch, time, head, head_dim)
        ablated[:, :, piece] = rows[:, piece]
        return ablated

    return hook


def rows_at(instead: Instead, name: str, positions: "Tensor", like: "Tensor") -> "Tensor":
    """Return what stands at some positions (time,) in the place of an activation: (time, ...)."""
    if name not in instead:
        return like.new_zeros(like.shape[1:])
    rows = instead[name].to(like)
    if len(rows) == 1:
        return rows.expand(like.shape[1:])
    # The first position is unlike all others: many models keep a large vector there.
    later = 1 + (positions - 1) % (len(rows) - 1)
    return rows[positions.where(positions < len(rows), later)]


def ablation_hook(
    inspected: InspectedText,
    layer: int,
    piece: Piece = None,
    how: How = "zero",
    reference: Sequence[InspectedText] = (),
) -> Hook:
    """Return a hook that ablates a head before the output projection, or what a layer adds.

    `how` is `zero`; `mean`, over the positions of the inspected text, or over those of a reference
    but the first of each text; or `resample`: what the part writes on the first reference text,
    position by position. Raises UserError if there is no such layer or head.
    """
    check_layer(inspected.config, layer, piece if isinstance(piece, int) else None)
    names = hook_names(layer, piece)
    instead: Instead = {}
    if how == "mean":
        instead = means(reference or [inspected], names, skip=int(bool(reference)))
    elif how == "resample":
        instead = written_on(reference[0], names)
    return instead_hook(instead, piece, names)


def written_on(text: InspectedText, names: Sequence[str]) -> Instead:
    """Return what a text has where the hook names end in `names`: (time, ...)."""
    return text.run_with_cache(*names, last_only=True)[1]


# -- directions


def direction_places(layers: int, layer: int | None = None) -> frozenset[str]:
    """Return where a direction is removed: after a layer, or wherever the stream has changed."""
    if layer is not None:
        return frozenset({f"blocks.{layer}.residual"})
    ends = "residual.mid", "residual"
    return frozenset({"embedding", *(f"blocks.{i}.{end}" for i in range(layers) for end in ends)})


def direction_hook(vector: "Tensor", places: frozenset[str]) -> Hook:
    """Return a hook that removes a unit vector from the residual stream: x − (x·v)v.

    With several vectors (n, 1, d_model), the pass goes on as a batch of n.
    """

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name not in places:
            return tensor
        along = vector.to(tensor)
        return tensor - (tensor * along).sum(-1, keepdim=True) * along

    return hook
