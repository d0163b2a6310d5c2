"""Matrices in 8 or 4 bits: how their numbers lie in memory, and what they are in float32. Needs no
torch.

Numbers lie in panels of 32 rows, each panel turned over, and along the inputs in groups of 32. Each
row of a group has a scale, in bfloat16. In 4 bits, a byte holds a number of row r (its lower half)
and one of row r + 16.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

PANEL = 32  # rows that lie side by side
GROUP = 32  # inputs of a row that share a scale

HALVES = np.array([[4], [0]], np.int8)
"""How far to shift a byte to the left so that its lower, or its upper, half stands at its upper end."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """A matrix (rows, inputs): whole numbers times the scale of their group."""

    shape: tuple[int, int]
    # (panels, groups, 32 inputs, 32 rows), or 16 bytes for the 32 rows in 4 bits
    numbers: NDArray[np.int8]
    scales: NDArray[np.uint16]  # (panels, groups, 32 rows), the bits of bfloat16

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.numbers.nbytes + self.scales.nbytes

    def __getitem__(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Return some rows (...) in float32: (..., inputs)."""
        wanted = np.asarray(rows)
        panels, places = np.unique(wanted // PANEL, return_inverse=True)
        scales = self.scales[panels].view(ml_dtypes.bfloat16).astype(np.float32)
        whole = widened(self.numbers[panels], scales, HALVES)
        found = whole[: self.shape[1], places.reshape(wanted.shape) * PANEL + wanted % PANEL]
        return np.ascontiguousarray(np.moveaxis(found, 0, -1))


def widened(numbers: Any, scales: Any, halves: Any) -> Any:
    """Return some panels in float32, turned over: (inputs, rows), both filled up to whole panels
    and groups.

    Of numpy's arrays or torch's tensors, `halves` being `HALVES` as one of these.
    """
    panels, groups, rows = scales.shape
    if numbers.shape[-1] < rows:
        numbers = (numbers[..., None, :] << halves >> 4).reshape(panels, groups, GROUP, rows)
    turned = numbers.swapaxes(0, 1).swapaxes(1, 2)  # (groups, 32 inputs, panels, 32 rows)
    return (turned * scales.swapaxes(0, 1)[:, None]).reshape(groups * GROUP, panels * rows)
