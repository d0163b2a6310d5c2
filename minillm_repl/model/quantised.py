"""Matrices in 8 or 4 bits: how weights are rounded, how they lie in memory, what they are in
float32. Needs no torch.

A row is cut into groups of 32 inputs, and each group has a scale: weight ≈ number · scale. So that
a processor multiplies 16 rows side by side, their numbers lie together: four inputs of the first
row, four of the second, … A byte holds a number plus 128. In 4 bits it holds two, each plus 8: the
lower half one of an even quad of inputs, the upper half one of the quad after it.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minillm_repl.model.bfloat16 import BFLOAT16, convert, to_float32

PANEL_ROWS = 16  # rows that lie side by side
GROUP_SIZE = 32  # inputs of a row that share a scale
_QUAD = 4  # inputs of a row that lie together
_AT_ONCE = 1 << 18  # numbers that a thread rounds at once, so that it takes little memory

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QuantisedMatrix:
    """A matrix (rows, inputs): whole numbers times the scale of their group."""

    shape: tuple[int, int]
    # (panels, groups, 8 quads, 16 rows, 4), or in 4 bits (panels, groups, 4 pairs, 16 rows, 4)
    packed_weights: NDArray[np.uint8]
    scales: NDArray[np.uint16]  # (panels, groups, 16), the bits of bfloat16

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.packed_weights.nbytes + self.scales.nbytes

    def __getitem__(self, rows: ArrayLike) -> Floats:
        """Return some rows (...) in float32: (..., inputs)."""
        row_ids = np.asarray(rows)
        panels, panel_index = np.unique(row_ids // PANEL_ROWS, return_inverse=True)
        scales = (self.scales[panels].astype(np.uint32) << 16).view(np.float32)
        dequantised = dequantise(self.packed_weights[panels].astype(np.int16), scales)
        selected: Floats = dequantised[
            panel_index.reshape(row_ids.shape) * PANEL_ROWS + row_ids % PANEL_ROWS, : self.shape[1]
        ]
        return selected

    def take_rows(self, first: int, last: int) -> "QuantisedMatrix":
        """Return rows `first` to `last`; a view of this one where `first` begins a panel."""
        shape = (last - first, self.shape[1])
        panels = slice(first // PANEL_ROWS, -(-last // PANEL_ROWS))
        packed, scales = self.packed_weights[panels], self.scales[panels]
        skipped = first % PANEL_ROWS
        if skipped == 0:
            return QuantisedMatrix(shape, packed, scales)
        bits = 8 * packed.shape[2] // (GROUP_SIZE // _QUAD)
        numbers = dequantise(packed.astype(np.int16), np.ones(scales.shape, np.float32))
        flat_scales = scales.swapaxes(1, 2).reshape(-1, scales.shape[1])
        count, rows = -(-shape[0] // PANEL_ROWS), slice(skipped, skipped + shape[0])
        packed = _pack(numbers[rows].astype(np.int8), count, bits)
        return QuantisedMatrix(shape, packed, _pack_scales(flat_scales[rows], count))


def dequantise(packed_weights: Any, scales: Any) -> Any:
    """Return whole panels in float32: (panels · 16, groups · 32).

    `packed_weights` are those of a `QuantisedMatrix` as int16, and `scales` as float32: arrays of
    numpy or tensors of torch. (numpy makes float64 of int32 times float32.)
    """
    panels, groups, _rows = scales.shape
    if packed_weights.shape[2] == GROUP_SIZE // _QUAD:
        numbers = packed_weights - 128
    else:
        halves = packed_weights[:, :, :, None]  # (panels, groups, pairs, 1, rows, 4)
        shape = (panels, groups, GROUP_SIZE // _QUAD, PANEL_ROWS, _QUAD)
        both = _concatenate(halves & 15, halves >> 4)
        numbers = both.reshape(shape) - 8
    scaled = numbers * scales[:, :, None, :, None]
    # (panels, rows, groups, quads, 4)
    return scaled.swapaxes(2, 3).swapaxes(1, 2).reshape(panels * PANEL_ROWS, groups * GROUP_SIZE)


def _concatenate(first: Any, second: Any) -> Any:
    """Join arrays or tensors along axis 3."""
    if isinstance(first, np.ndarray):
        return np.concatenate((first, second), 3)
    import torch

    return torch.cat((first, second), 3)


def round_groups(matrix: NDArray[Any], bits: int) -> tuple[NDArray[np.int8], Floats]:
    """Return whole numbers (rows, inputs) and scales (rows, groups): matrix ≈ numbers · scale,
    group by group.

    The largest of a group becomes −2^(bits − 1), of which there is one more than of positive
    numbers.
    """
    rows, inputs = matrix.shape
    padded = np.zeros((rows, -(-inputs // GROUP_SIZE) * GROUP_SIZE), np.float32)
    padded[:, :inputs] = to_float32(matrix)
    groups = padded.reshape(rows, -1, GROUP_SIZE)
    most, least = groups.max(axis=2), groups.min(axis=2)
    ends = 1 << (bits - 1)
    largest = np.where(most > -least, most, least)
    scale = to_float32(convert(largest / np.float32(-ends), BFLOAT16))
    groups /= np.where(scale, scale, np.float32(1))[:, :, None]
    np.clip(np.rint(groups, out=groups), -ends, ends - 1, out=groups)
    return padded[:, :inputs].astype(np.int8), scale


def quantise(matrix: NDArray[Any], bits: int, threads: int = 1) -> QuantisedMatrix:
    """Return a matrix (rows, inputs) in 8 or 4 bits; the last panel is filled up with zeros."""
    rows, inputs = matrix.shape
    panels, groups = -(-rows // PANEL_ROWS), -(-inputs // GROUP_SIZE)
    quads = GROUP_SIZE // _QUAD * bits // 8
    packed = np.empty((panels, groups, quads, PANEL_ROWS, _QUAD), np.uint8)
    scales = np.empty((panels, groups, PANEL_ROWS), np.uint16)
    step = max(1, _AT_ONCE // (inputs * PANEL_ROWS))

    def fill(first: int) -> None:
        last = min(first + step, panels)
        numbers, scale = round_groups(matrix[first * PANEL_ROWS : last * PANEL_ROWS], bits)
        packed[first:last] = _pack(numbers, last - first, bits)
        bits16 = convert(scale, BFLOAT16).view(np.uint16)
        scales[first:last] = _pack_scales(bits16, last - first)

    with ThreadPoolExecutor(threads, "rounding") as pool:
        list(pool.map(fill, range(0, panels, step)))
    return QuantisedMatrix((rows, inputs), packed, scales)


def _pack(numbers: NDArray[np.int8], panels: int, bits: int) -> NDArray[np.uint8]:
    """Return numbers (rows, inputs) as they lie in memory."""
    rows, inputs = numbers.shape
    groups = -(-inputs // GROUP_SIZE)
    whole = np.full((panels * PANEL_ROWS, groups * GROUP_SIZE), 1 << (bits - 1), np.uint8)
    whole[:rows, :inputs] = numbers.astype(np.int16) + (1 << (bits - 1))
    quads = whole.reshape(panels, PANEL_ROWS, groups, GROUP_SIZE // _QUAD, _QUAD)
    quads = quads.transpose(0, 2, 3, 1, 4)
    if bits == 8:
        return quads
    packed: NDArray[np.uint8] = quads[:, :, ::2] | quads[:, :, 1::2] << 4
    return packed


def _pack_scales(scales: NDArray[np.uint16], panels: int) -> NDArray[np.uint16]:
    """Return scales (rows, groups) as (panels, groups, 16), filled up with zeros."""
    whole = np.zeros((panels * PANEL_ROWS, scales.shape[1]), np.uint16)
    whole[: len(scales)] = scales
    return whole.reshape(panels, PANEL_ROWS, -1).transpose(0, 2, 1)
