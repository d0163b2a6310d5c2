"""Matrices in 8 bits or fewer: how weights are rounded, how they lie in memory, what they are in
float32. Needs no torch.

A row is cut into groups of 32 inputs, and each group has a scale: weight ≈ number · scale. So that
a processor multiplies 16 rows side by side, their numbers lie together: four inputs of the first
row, four of the second, … A byte holds a number, from 0 on. In 4 bits it holds two: the lower half
one of an even quad of inputs, the upper half one of the quad after it. In 5 and 6 bits the upper
bits follow those of the group. The blocks of GGUF are kept so too, with all their bits.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minillm_repl.model.bfloat16 import BFLOAT16, convert, to_float32
from minillm_repl.model.blocks import (
    BlockType,
    Bytes,
    Floats,
    RowBlocks,
    float_scales,
    stored_numbers,
    stored_scales,
)

PANEL_ROWS = 16  # rows that lie side by side
GROUP_SIZE = 32  # inputs of a row that share a scale
_QUADS = 8  # of a group: four inputs of a row lie together
_LOWER_BYTES = 4 * GROUP_SIZE * PANEL_ROWS // 8  # of a group: its numbers' lower four bits
_AT_ONCE = 1 << 18  # numbers that a thread rounds at once, so that it takes little memory

# What `quantise` makes. Its scales are bfloat16, which has the range of float32.
INT8 = BlockType("INT8", GROUP_SIZE, 34, 8, 128)
INT4 = BlockType("INT4", GROUP_SIZE, 18, 4, 8)


@dataclass(frozen=True, eq=False)
class QuantisedMatrix:
    """A matrix (rows, inputs): whole numbers times the scale of their group."""

    shape: tuple[int, int]
    kind: BlockType
    # (panels, groups, bytes): the lower bits (quads, or pairs of them, 16 rows, 4), then the upper
    packed_weights: Bytes
    # (panels, blocks, bytes): float16 or bfloat16 numbers (k, 16 rows), then bytes (j, 16 rows)
    scales: Bytes

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.packed_weights.nbytes + self.scales.nbytes

    def __getitem__(self, rows: slice | ArrayLike) -> Floats:
        """Return some rows (...) in float32: (..., inputs)."""
        if isinstance(rows, slice):
            first, last, _step = rows.indices(self.shape[0])
            skipped = first % PANEL_ROWS
            panels = slice(first // PANEL_ROWS, -(-last // PANEL_ROWS))
            return self._in_float32(panels)[skipped : skipped + last - first]
        ids = np.asarray(rows)
        found, index = np.unique(ids // PANEL_ROWS, return_inverse=True)
        dequantised = self._in_float32(found)
        selected: Floats = dequantised[index.reshape(ids.shape) * PANEL_ROWS + ids % PANEL_ROWS]
        return selected

    def _in_float32(self, panels: slice | NDArray[Any]) -> Floats:
        """Return whole panels: (panels · 16, inputs)."""
        numbers = _unpack(self.packed_weights[panels], self.kind.bits)
        halves, whole = _unpack_scales(self.scales[panels], self.kind)
        if self.kind in (INT8, INT4):
            scales, minima = to_float32(halves.view(BFLOAT16)), None
        else:
            scales, minima = float_scales(self.kind, halves, whole)
        scales = scales.reshape(len(scales), -1, 1)  # (rows, groups, 1)
        weights = numbers.reshape(*scales.shape[:2], -1).astype(np.float32)
        weights -= np.float32(self.kind.offset)
        with np.errstate(invalid="ignore"):  # 0 times a scale that is infinite
            weights *= scales
            if minima is not None:
                weights += minima.reshape(scales.shape)
        return weights.reshape(len(weights), -1)[:, : self.shape[1]]

    def take_rows(self, first: int, last: int) -> "QuantisedMatrix":
        """Return rows `first` to `last`; a view of this one where `first` begins a panel."""
        shape = (last - first, self.shape[1])
        panels = slice(first // PANEL_ROWS, -(-last // PANEL_ROWS))
        packed, scales = self.packed_weights[panels], self.scales[panels]
        skipped = first % PANEL_ROWS
        if skipped == 0:
            return QuantisedMatrix(shape, self.kind, packed, scales)
        stored = (_unpack(packed, self.kind.bits), *_unpack_scales(scales, self.kind))
        return _fill(
            shape, self.kind, lambda rows: [part[skipped:][: shape[0]][rows] for part in stored]
        )


Part = QuantisedMatrix | NDArray[Any]


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """A matrix (rows, inputs) of a GGUF file.

    Its parts are rows one below the other, each in its own format: a file may have the values of
    attention in more bits than the queries.
    """

    parts: tuple[Part, ...]

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and inputs."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(part.nbytes for part in self.parts)

    @property
    def kind(self) -> BlockType:
        """The format of most of its rows that are in blocks."""
        blocks = (part for part in self.parts if isinstance(part, QuantisedMatrix))
        return max(blocks, key=lambda part: part.shape[0]).kind

    def __getitem__(self, rows: slice | ArrayLike) -> Floats:
        """Return some rows (...) in float32: (..., inputs)."""
        if isinstance(rows, slice):
            first, last, _step = rows.indices(self.shape[0])
            return np.concatenate([_rows(*each) for each in self.split(first, last)])
        ids = np.asarray(rows)
        flat, start = ids.reshape(-1) % self.shape[0], 0
        result = np.empty((flat.size, self.shape[1]), np.float32)
        for part in self.parts:
            here = (flat >= start) & (flat < start + part.shape[0])
            if here.any():
                result[here] = _rows(part, flat[here] - start)
            start += part.shape[0]
        return result.reshape(*ids.shape, -1)

    def to_float32(self) -> Floats:
        """Return all weights (rows, inputs)."""
        result = np.empty(self.shape, np.float32)
        # Some rows at a time: the whole numbers of all would take as much memory again.
        step = max(PANEL_ROWS, _AT_ONCE // self.shape[1] // PANEL_ROWS * PANEL_ROWS)
        for first in range(0, len(result), step):
            result[first : first + step] = self[first : first + step]
        return result

    def split(self, first: int, last: int) -> Iterator[tuple[Part, slice]]:
        """Yield the parts that rows `first` to `last` lie in, and which rows of a part they are."""
        start = 0
        for part in self.parts:
            begin, end = max(first - start, 0), min(last - start, part.shape[0])
            if begin < end:
                yield part, slice(begin, end)
            start += part.shape[0]


def _rows(part: Part, rows: slice | NDArray[Any]) -> Floats:
    return part[rows] if isinstance(part, QuantisedMatrix) else to_float32(part[rows])


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
    kind = INT8 if bits == 8 else INT4

    def encode(rows: slice) -> _Stored:
        numbers, scale = round_groups(matrix[rows], bits)
        padded = np.full((len(scale), scale.shape[1] * GROUP_SIZE), kind.offset, np.uint8)
        padded[:, : matrix.shape[1]] = numbers.astype(np.int16) + kind.offset
        halves = convert(scale, BFLOAT16).view(np.uint16)[:, :, None]
        return padded, halves, halves[:, :, :0].view(np.uint8)

    rows, inputs = matrix.shape
    return _fill((rows, inputs), kind, encode, threads)


def pack_blocks(rows: RowBlocks, threads: int = 1) -> QuantisedMatrix:
    """Return rows of a GGUF file, packed.

    No bit of a weight is lost or rounded. In a K format the scales of groups, of 6 bits, get bytes.
    """
    kind, by_rows, shape = rows.kind, rows.data, (len(rows.data), rows.inputs)

    def encode(rows: slice) -> _Stored:
        some = by_rows[rows]
        count, blocks = len(some), some.shape[1] // kind.nbytes
        data = np.ascontiguousarray(some).reshape(-1, kind.nbytes)
        scales = [part.reshape(count, blocks, part.shape[1]) for part in stored_scales(data, kind)]
        return stored_numbers(data, kind).reshape(count, -1), *scales

    return _fill(shape, kind, encode, threads)


# Of some rows: the numbers (rows, inputs), and of the scales the 16-bit floats (rows, blocks, k)
# and the bytes (rows, blocks, j).
_Stored = Sequence[Any]


def _fill(
    shape: tuple[int, int],
    kind: BlockType,
    encode: Callable[[slice], _Stored],
    threads: int = 1,
) -> QuantisedMatrix:
    """Return the matrix of which `encode` gives some rows."""
    rows, inputs = shape
    panels, groups = -(-rows // PANEL_ROWS), -(-inputs // GROUP_SIZE)
    _numbers, halves, whole = encode(slice(0, 1))
    blocks, scale_bytes = halves.shape[1], 2 * halves.shape[2] + whole.shape[2]
    packed = np.empty((panels, groups, kind.bits * GROUP_SIZE * PANEL_ROWS // 8), np.uint8)
    scales = np.empty((panels, blocks, scale_bytes * PANEL_ROWS), np.uint8)
    step = max(1, _AT_ONCE // (inputs * PANEL_ROWS))

    def fill(first: int) -> None:
        last = min(first + step, panels)
        numbers, *scale = encode(slice(first * PANEL_ROWS, min(last * PANEL_ROWS, rows)))
        packed[first:last] = _pack(_whole_panels(numbers, kind.offset), kind.bits)
        parts = [_whole_panels(part, 0) for part in scale]
        scales[first:last] = _pack_scales(*parts)

    with ThreadPoolExecutor(threads, "rounding") as pool:
        list(pool.map(fill, range(0, panels, step)))
    return QuantisedMatrix(shape, kind, packed, scales)


def _whole_panels(rows: Bytes, filler: int) -> Bytes:
    """Return rows (n, …) as panels (panels, 16, …), filled up."""
    panels = -(-len(rows) // PANEL_ROWS)
    if len(rows) < panels * PANEL_ROWS:
        padded = np.full((panels * PANEL_ROWS, *rows.shape[1:]), filler, rows.dtype)
        padded[: len(rows)] = rows
        rows = padded
    return rows.reshape(panels, PANEL_ROWS, *rows.shape[1:])


def _pack(numbers: Bytes, bits: int) -> Bytes:
    """Return numbers (panels, 16, inputs) as they lie in memory: (panels, groups, bytes)."""
    panels, _rows, inputs = numbers.shape
    groups = inputs // GROUP_SIZE
    quads = numbers.reshape(panels, PANEL_ROWS, groups, _QUADS, 4).transpose(0, 2, 3, 1, 4)
    if bits == 8:
        return quads.reshape(panels, groups, -1)
    lower = quads & 15
    planes = [lower[:, :, ::2] | lower[:, :, 1::2] << 4]
    if bits > 4:
        upper = (quads >> 4).reshape(panels, groups, bits - 4, -1, PANEL_ROWS, 4)
        planes.append(np.bitwise_or.reduce(upper << _shifts(bits), axis=3))
    return np.concatenate([plane.reshape(panels, groups, -1) for plane in planes], axis=2)


def _unpack(packed: Bytes, bits: int) -> Bytes:
    """Return the numbers (rows, inputs) of whole panels."""
    panels, groups, _bytes = packed.shape
    quads = packed
    if bits < 8:
        lower = packed[:, :, :_LOWER_BYTES].reshape(panels, groups, -1, 1, PANEL_ROWS, 4)
        quads = np.concatenate((lower & 15, lower >> 4), axis=3)
        quads = quads.reshape(panels, groups, _QUADS, PANEL_ROWS, 4)
    if 4 < bits < 8:
        upper = packed[:, :, _LOWER_BYTES:].reshape(panels, groups, bits - 4, 1, PANEL_ROWS, 4)
        upper = upper >> _shifts(bits) & np.uint8((1 << bits - 4) - 1)
        quads |= upper.reshape(quads.shape) << 4
    quads = quads.reshape(panels, groups, _QUADS, PANEL_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return quads.reshape(panels * PANEL_ROWS, groups * GROUP_SIZE)


def _shifts(bits: int) -> Bytes:
    """Return where a byte has the upper bits of eight quads, or, of 6 bits, of four: (quads, 1, 1).

    The lower bits of number j of a quad, and the upper ones, are in byte j of 4.
    """
    return np.array(range(0, 8, bits - 4), np.uint8)[:, None, None]


def _pack_scales(halves: Bytes, whole: Bytes) -> Bytes:
    """Return 16-bit floats (panels, 16, blocks, k) and bytes (panels, 16, blocks, j) as they lie in
    memory: (panels, blocks, bytes).
    """
    parts = [np.ascontiguousarray(part.transpose(0, 2, 3, 1)) for part in (halves, whole)]
    return np.concatenate(
        [part.view(np.uint8).reshape(*part.shape[:2], -1) for part in parts], axis=2
    )


def _unpack_scales(scales: Bytes, kind: BlockType) -> tuple[Bytes, Bytes]:
    """Return the floats of 16 bits (rows, blocks, k), and bytes (rows, blocks, j), of panels."""
    panels, blocks, _bytes = scales.shape
    end = 2 * PANEL_ROWS * kind.scales
    halves = np.ascontiguousarray(scales[:, :, :end]).view(np.uint16)
    by_rows = (
        part.reshape(panels, blocks, -1, PANEL_ROWS)
        .transpose(0, 3, 1, 2)
        .reshape(panels * PANEL_ROWS, blocks, -1)
        for part in (halves, scales[:, :, end:])
    )
    first, second = (np.ascontiguousarray(part) for part in by_rows)
    return first, second
