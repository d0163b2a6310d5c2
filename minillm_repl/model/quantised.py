"""Matrices in 8 bits or fewer: how weights are rounded, and what they are in float32. Needs no
torch.

A row is cut into groups of 32 inputs, and each group has a scale: weight ≈ number · scale. The
blocks of GGUF are kept so too, with all their bits. How these lie in memory: panels.py.
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
from minillm_repl.model.panels import (
    GROUP_SIZE,
    PANEL_ROWS,
    pack,
    pack_scales,
    unpack,
    unpack_scales,
    whole_panels,
)

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
        numbers = unpack(self.packed_weights[panels], self.kind.bits)
        halves, whole = unpack_scales(self.scales[panels], self.kind)
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
        stored = (unpack(packed, self.kind.bits), *unpack_scales(scales, self.kind))
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
    groups = padded.reshape(rows, -1, GROUP_SIZE)  # (rows, groups, 32)
    most, least = groups.max(axis=2), groups.min(axis=2)  # (rows, groups)
    ends = 1 << (bits - 1)
    largest = np.where(most > -least, most, least)  # by its size, with its sign
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
    _numbers, halves, whole = encode(slice(0, 1))  # one row tells the sizes
    blocks, scale_bytes = halves.shape[1], 2 * halves.shape[2] + whole.shape[2]
    packed = np.empty((panels, groups, kind.bits * GROUP_SIZE * PANEL_ROWS // 8), np.uint8)
    scales = np.empty((panels, blocks, scale_bytes * PANEL_ROWS), np.uint8)
    step = max(1, _AT_ONCE // (inputs * PANEL_ROWS))

    def fill(first: int) -> None:
        last = min(first + step, panels)
        numbers, *scale = encode(slice(first * PANEL_ROWS, min(last * PANEL_ROWS, rows)))
        packed[first:last] = pack(whole_panels(numbers, kind.offset), kind.bits)
        parts = [whole_panels(part, 0) for part in scale]
        scales[first:last] = pack_scales(*parts)

    with ThreadPoolExecutor(threads, "rounding") as pool:
        list(pool.map(fill, range(0, panels, step)))
    return QuantisedMatrix(shape, kind, packed, scales)
