"""The layers that hold a matrix. Arithmetic with it is in float32, whatever kind of number it is
stored in.

A matrix in fewer than 32 bits is widened one block of rows at a time, where it is used: a block
stays in a near cache, and no second copy of the weights is made.
"""

from collections.abc import Iterator
from typing import Any, Union

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor, nn

from minillm_repl.model.quantised import HALVES, PANEL, Quantised, widened

_BLOCK = 2**18  # numbers that are widened at once: 1 MiB
_BLOCK_ON_A_GPU = 2**26  # where starting many small operations takes longer than they do

Weight = Union[Tensor, "QuantisedWeight"]
"""What a layer may have as its weight: both hand out rows, and both know their shape."""


class Linear(nn.Linear):
    """A linear layer, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return multiply(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table with a vector for each id, which it hands out in float32."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to vectors (..., width)."""
        found = super().forward(ids) if isinstance(self.weight, Tensor) else self.weight[ids]
        return found if found.itemsize >= 4 else found.float()


class QuantisedWeight:
    """A matrix in 8 or 4 bits where a layer has its weight: the rows that are asked for are made
    float32.
    """

    itemsize = 1

    def __init__(self, matrix: Quantised) -> None:
        self.shape, self._matrix = matrix.shape, matrix
        self._numbers, self._halves = torch.from_numpy(matrix.numbers), torch.from_numpy(HALVES)
        self._scales = torch.from_numpy(matrix.scales).view(torch.bfloat16)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        if not isinstance(rows, slice):
            return torch.from_numpy(self._matrix[rows])
        start, stop, _step = rows.indices(len(self))
        first, last = start // PANEL, -(-stop // PANEL)
        whole: Tensor = widened(
            self._numbers[first:last], self._scales[first:last].float(), self._halves
        )
        return whole[: self.shape[1], start - first * PANEL : stop - first * PANEL].T


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return x · weightᵀ + bias: (..., inputs) to (..., outputs)."""
    if isinstance(weight, Tensor) and weight.itemsize >= 4:
        return F.linear(x, weight, bias)
    y: Tensor = _Blockwise.apply(x, weight)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


class _Blockwise(torch.autograd.Function):
    """The product with a matrix that is widened block by block, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        y = x.new_empty(*x.shape[:-1], len(weight))
        for first, block in _blocks(weight):
            y[..., first : first + len(block)] = F.linear(x, block)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (of_y,) = gradients
        of_x = of_y.new_zeros(*of_y.shape[:-1], ctx.weight.shape[1])
        for first, block in _blocks(ctx.weight):
            of_x += of_y[..., first : first + len(block)] @ block
        return of_x, None


def _blocks(weight: Weight) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows of a matrix as float32, some at a time, each with the number of its first
    row.
    """
    most = _BLOCK_ON_A_GPU if isinstance(weight, Tensor) and weight.is_cuda else _BLOCK
    rows = max(PANEL, most // weight.shape[1] // PANEL * PANEL)
    for first in range(0, len(weight), rows):
        yield first, weight[first : first + rows].float()
