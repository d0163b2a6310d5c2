"""Matrices in 8 or 4 bits: how they lie in memory, what they are in float32. Needs no torch.

Numbers lie in panels of 32 rows, each panel turned over, and along the inputs in groups of 32. Each
row of a group has a scale, in bfloat16. In 4 bits, a byte holds a number of row r (its lower half)
and one of row r + 16.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

PANEL_ROWS = 32  # rows that lie side by side
GROUP_SIZE = 32  # inputs of a row that share a scale

NIBBLE_SHIFTS = np.array([[4], [0]], np.int8)
"""How far to shift a byte to the left so that its lower, or upper, half is at its upper end."""


@dataclass(frozen=True, eq=False)
class QuantisedMatrix:
    """A matrix (rows, inputs): whole numbers times the scale of their group."""

    shape: tuple[int, int]
    # (panels, groups, 32 inputs, 32 rows), or 16 bytes for the 32 rows in 4 bits
    packed_weights: NDArray[np.int8]
    scales: NDArray[np.uint16]  # (panels, groups, 32 rows), the bits of bfloat16

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.packed_weights.nbytes + self.scales.nbytes

    def __getitem__(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Return some rows (...) in float32: (..., inputs)."""
        row_ids = np.asarray(rows)
        panels, panel_index = np.unique(row_ids // PANEL_ROWS, return_inverse=True)
        scales = self.scales[panels].view(ml_dtypes.bfloat16).astype(np.float32)
        dequantised = dequantise(self.packed_weights[panels], scales, NIBBLE_SHIFTS)
        selected = dequantised[
            : self.shape[1], panel_index.reshape(row_ids.shape) * PANEL_ROWS + row_ids % PANEL_ROWS
        ]
        return np.ascontiguousarray(np.moveaxis(selected, 0, -1))


def dequantise(packed_weights: Any, scales: Any, nibble_shifts: Any) -> Any:
    """Return some panels in float32, turned over: (inputs, rows), filled up to panels and groups.

    Of numpy's arrays or torch's tensors, `halves` being `HALVES` as one of these.
    """
    panels, groups, rows = scales.shape
    if packed_weights.shape[-1] < rows:
        packed_weights = (packed_weights[..., None, :] << nibble_shifts >> 4).reshape(
            panels, groups, GROUP_SIZE, rows
        )
    transposed = packed_weights.swapaxes(0, 1).swapaxes(
        1, 2
    )  # (groups, 32 inputs, panels, 32 rows)
    return (transposed * scales.swapaxes(0, 1)[:, None]).reshape(groups * GROUP_SIZE, panels * rows)
