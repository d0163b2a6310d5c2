"""The block formats of GGUF: how a row of weights lies in a file, and what it is in float32.

A row is cut into blocks, and a block holds whole numbers with the scale that they are multiplied
with: weight = scale · number, or scale · number + minimum. The K formats have blocks of 256
weights in smaller groups; a group's scale is itself a whole number times the scale of the block.
Needs no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minillm_repl.model.bfloat16 import BFLOAT16, to_float32

Bytes = NDArray[Any]  # of uint8
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """A format of GGUF: its name there, and the size of a block."""

    name: str
    weights: int  # in a block
    nbytes: int  # of a block

    def row_bytes(self, inputs: int) -> int:
        """Return the bytes of a row. Raises ValueError if it is no whole number of blocks."""
        blocks, rest = divmod(inputs, self.weights)
        if rest:
            raise ValueError(self.name, inputs)
        return blocks * self.nbytes


F32 = BlockType("F32", 1, 4)
F16 = BlockType("F16", 1, 2)
BF16 = BlockType("BF16", 1, 2)
Q4_0 = BlockType("Q4_0", 32, 18)
Q4_1 = BlockType("Q4_1", 32, 20)
Q5_0 = BlockType("Q5_0", 32, 22)
Q5_1 = BlockType("Q5_1", 32, 24)
Q8_0 = BlockType("Q8_0", 32, 34)
Q4_K = BlockType("Q4_K", 256, 144)
Q5_K = BlockType("Q5_K", 256, 176)
Q6_K = BlockType("Q6_K", 256, 210)

BLOCK_TYPES = {
    0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0, 12: Q4_K, 13: Q5_K, 14: Q6_K,
    30: BF16,
}  # fmt: skip
"""The formats by the number that a file has for them."""


def dequantise(blocks: Bytes, kind: BlockType, shape: tuple[int, ...]) -> Floats:
    """Return the weights of some blocks in float32, in a shape (…, inputs).

    `blocks` are the bytes of a tensor as the file has them, in any shape. Raises ValueError if
    there are more or fewer than the shape needs.
    """
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    if blocks.size != rows * kind.row_bytes(shape[-1]):
        raise ValueError(kind.name, shape)
    flat = np.ascontiguousarray(blocks).reshape(-1, kind.nbytes)
    weights: Floats = _VALUES[kind.name](flat).reshape(shape)
    return weights


# Each function below takes the bytes of some blocks (n, nbytes), and returns (n, weights).


def _f16(data: Bytes) -> Floats:
    """Return float16 numbers (n, bytes/2) as float32."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """Return the lower halves of some bytes (n, …, k), then the upper ones: (n, …, 2k)."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _less(numbers: Bytes, offset: int) -> Floats:
    """Return numbers less an offset."""
    less: Floats = numbers.astype(np.float32) - np.float32(offset)
    return less


def _bits(data: Bytes) -> Bytes:
    """Return the bits of some bytes (n, k), the lowest first: (n, 8k)."""
    return np.unpackbits(data, axis=-1, bitorder="little")


_COUNT: Bytes = np.array(range(8), np.uint8)[:, None]  # how far a byte is shifted


def _q8_0(data: Bytes) -> Floats:
    weights: Floats = data[:, 2:].view(np.int8) * _f16(data[:, :2])
    return weights


def _q4_0(data: Bytes) -> Floats:
    numbers = _nibbles(data[:, 2:])
    return _less(numbers, 8) * _f16(data[:, :2])


def _q4_1(data: Bytes) -> Floats:
    return _nibbles(data[:, 4:]) * _f16(data[:, :2]) + _f16(data[:, 2:4])


def _q5_0(data: Bytes) -> Floats:
    numbers = _nibbles(data[:, 6:]) | _bits(data[:, 2:6]) << 4
    return _less(numbers, 16) * _f16(data[:, :2])


def _q5_1(data: Bytes) -> Floats:
    numbers = _nibbles(data[:, 8:]) | _bits(data[:, 4:8]) << 4
    return _less(numbers, 0) * _f16(data[:, :2]) + _f16(data[:, 2:4])


def unpack_group_scales(data: Bytes) -> tuple[Bytes, Bytes]:
    """Return the scales and the minima (n, 8) of the groups of a Q4_K or Q5_K block, 6 bits each.

    `data` (n, 12) has the first four of both in the lower bits of bytes 0-3 and 4-7. Of the other
    four, the lower halves are in bytes 8-11, and the upper two bits on top of bytes 0-3 and 4-7.
    """
    first, second, last = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = np.concatenate((first & 63, last & 15 | first >> 6 << 4), axis=1)
    minima = np.concatenate((second & 63, last >> 4 | second >> 6 << 4), axis=1)
    return scales, minima


def _scale_groups(data: Bytes, numbers: Bytes) -> Floats:
    """Return the weights of Q4_K or Q5_K blocks, of their numbers (n, 256)."""
    scales, minima = unpack_group_scales(data[:, 4:16])
    steps = _f16(data[:, :2]) * scales  # (n, 8)
    offsets = _f16(data[:, 2:4]) * minima
    grouped = numbers.reshape(-1, 8, 32)
    return (steps[:, :, None] * grouped - offsets[:, :, None]).reshape(-1, 256)


def _q4_k(data: Bytes) -> Floats:
    return _scale_groups(data, k_numbers(data, Q4_K))


def _q5_k(data: Bytes) -> Floats:
    return _scale_groups(data, k_numbers(data, Q5_K))


def _q6_k(data: Bytes) -> Floats:
    steps = _f16(data[:, 208:]) * data[:, 192:208].view(np.int8)  # (n, 16)
    numbers = _less(k_numbers(data, Q6_K), 32)
    return (steps[:, :, None] * numbers.reshape(-1, 16, 16)).reshape(-1, 256)


def k_numbers(data: Bytes, kind: BlockType) -> Bytes:
    """Return the whole numbers (n, 256) of blocks of Q4_K, Q5_K or Q6_K, before their offset."""
    if kind is Q6_K:
        # Each half of a block has 64 bytes of lower bits and 32 of upper ones, two a weight.
        lower = _nibbles(data[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
        upper = data[:, 128:192].reshape(-1, 2, 1, 32) >> _COUNT[:8:2] & 3
        sixes: Bytes = lower | upper.reshape(-1, 256) << 4
        return sixes
    # 32 bytes have the lower bits of 64 weights, the first 32 below.
    lower = _nibbles(data[:, -128:].reshape(-1, 4, 32)).reshape(-1, 256)
    if kind is Q4_K:
        return lower
    # Bit g of byte i belongs to weight i of group g.
    fifth = data[:, 16:48].reshape(-1, 1, 32) >> _COUNT & 1
    fives: Bytes = lower | fifth.reshape(-1, 256) << 4
    return fives


_VALUES: dict[str, Callable[[Any], Floats]] = {
    "F32": lambda data: data.view("<f4"),
    "F16": _f16,
    "BF16": lambda data: to_float32(data.view(BFLOAT16)),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


# -- matrices of blocks


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """Some rows of a matrix as a file has them: data is (rows, bytes of a row)."""

    kind: BlockType
    data: Bytes

    @property
    def inputs(self) -> int:
        """Weights of a row."""
        return int(self.data.shape[1]) // self.kind.nbytes * self.kind.weights

    def to_float32(self) -> Floats:
        """Return the weights (rows, inputs)."""
        return dequantise(self.data, self.kind, (len(self.data), self.inputs))


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """A matrix (rows, inputs) that stays in the blocks of its file.

    Its parts are rows one below the other, each in its own format: a file may have the values of
    attention in more bits than the queries.
    """

    parts: tuple[RowBlocks, ...]

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and inputs."""
        return sum(len(part.data) for part in self.parts), self.parts[0].inputs

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(part.data.nbytes for part in self.parts)

    @property
    def kind(self) -> BlockType:
        """The format of most of its rows."""
        return max(self.parts, key=lambda part: len(part.data)).kind

    def take_rows(self, first: int, last: int) -> "BlockMatrix":
        """Return rows `first` to `last`, in the same memory."""
        parts, start = list[RowBlocks](), 0
        for part in self.parts:
            rows = part.data[max(0, first - start) : max(0, last - start)]
            if len(rows):
                parts.append(RowBlocks(part.kind, rows))
            start += len(part.data)
        return BlockMatrix(tuple(parts) or (RowBlocks(part.kind, part.data[:0]),))

    def __getitem__(self, rows: slice | ArrayLike) -> Floats:
        """Return some rows (...) in float32: (..., inputs)."""
        if isinstance(rows, slice):
            first, last, _step = rows.indices(self.shape[0])
            return self.take_rows(first, last).to_float32()
        ids = np.asarray(rows)
        flat, start = ids.reshape(-1) % self.shape[0], 0
        result = np.empty((flat.size, self.shape[1]), np.float32)
        for part in self.parts:
            here = (flat >= start) & (flat < start + len(part.data))
            result[here] = RowBlocks(part.kind, part.data[flat[here] - start]).to_float32()
            start += len(part.data)
        return result.reshape(*ids.shape, -1)

    def to_float32(self) -> Floats:
        """Return all weights (rows, inputs)."""
        result, start = np.empty(self.shape, np.float32), 0
        for part in self.parts:
            # Some rows at a time: the whole numbers of all would take as much memory again.
            step = max(1, _AT_ONCE // part.inputs)
            for first in range(0, len(part.data), step):
                piece = RowBlocks(part.kind, part.data[first : first + step]).to_float32()
                result[start + first : start + first + len(piece)] = piece
            start += len(part.data)
        return result

    def is_finite(self) -> bool:
        """Tell whether all weights are finite: whole numbers are, so their scales decide."""
        return all(map(_has_finite_scales, self.parts))


_AT_ONCE = 1 << 20  # weights that are made float32 at once
_SCALES = {  # where a block has float16 numbers, in bytes from its start
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def _has_finite_scales(part: RowBlocks) -> bool:
    if part.kind.name not in _SCALES:
        return bool(np.isfinite(part.to_float32()).all())
    blocks = part.data.reshape(-1, part.kind.nbytes)
    for at in _SCALES[part.kind.name]:
        # An exponent of ones is infinity or NaN.
        if (np.ascontiguousarray(blocks[:, at + 1]) & 0x7C == 0x7C).any():
            return False
    return True
