"""The block formats of GGUF: how a row of weights lies in a file, and what it is in float32.

A row is cut into blocks, and a block into groups of weights that share a scale:
weight = (number − offset) · scale + minimum. The K formats have blocks of 256 weights; the scale of
a group is there a whole number times the scale of the block. Needs no torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.model.bfloat16 import BFLOAT16, to_float32

Bytes = NDArray[Any]  # of uint8
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """A format of GGUF: its name there, the size of a block, and what its numbers are."""

    name: str
    weights: int  # in a block
    nbytes: int  # of a block
    bits: int = 0  # of a number; 0: the weights are floats
    offset: int = 0  # what a number has too much
    scales: int = 1  # 16-bit floats of a block: its scale, or its scale and its minimum

    def row_bytes(self, inputs: int) -> int:
        """Return the bytes of a row. Raises ValueError if it is no whole number of blocks."""
        blocks, rest = divmod(inputs, self.weights)
        if rest:
            raise ValueError(self.name, inputs)
        return blocks * self.nbytes


F32 = BlockType("F32", 1, 4)
F16 = BlockType("F16", 1, 2)
BF16 = BlockType("BF16", 1, 2)
Q4_0 = BlockType("Q4_0", 32, 18, 4, 8)
Q4_1 = BlockType("Q4_1", 32, 20, 4, scales=2)
Q5_0 = BlockType("Q5_0", 32, 22, 5, 16)
Q5_1 = BlockType("Q5_1", 32, 24, 5, scales=2)
Q8_0 = BlockType("Q8_0", 32, 34, 8, 128)
Q4_K = BlockType("Q4_K", 256, 144, 4, scales=2)
Q5_K = BlockType("Q5_K", 256, 176, 5, scales=2)
Q6_K = BlockType("Q6_K", 256, 210, 6, 32)

BLOCK_TYPES = {
    0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0, 12: Q4_K, 13: Q5_K, 14: Q6_K,
    30: BF16,
}  # fmt: skip
"""The formats by the number that a file has for them."""

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16
}  # fmt: skip
_INFINITE = 0x7C00  # the exponent of a float16 that is infinity or NaN
_COUNT: Bytes = np.array(range(8), np.uint8)[:, None]  # how far a byte is shifted


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

    def is_finite(self) -> bool:
        """Tell whether all weights are finite: whole numbers are, so their scales decide."""
        if not self.kind.bits:
            return bool(np.isfinite(self.to_float32()).all())
        halves, _whole = stored_scales(self.data.reshape(-1, self.kind.nbytes), self.kind)
        return bool((halves & _INFINITE != _INFINITE).all())


def dequantise(blocks: Bytes, kind: BlockType, shape: tuple[int, ...]) -> Floats:
    """Return the weights of some blocks in float32, in a shape (…, inputs).

    `blocks` are the bytes of a tensor as the file has them, in any shape. Raises ValueError if
    there are more or fewer than the shape needs.
    """
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    if blocks.size != rows * kind.row_bytes(shape[-1]):
        raise ValueError(kind.name, shape)
    data = np.ascontiguousarray(blocks).reshape(-1, kind.nbytes)
    if kind.bits == 0:
        return to_float32(data.view(FLOATS[kind.name])).reshape(shape)
    scales, minima = float_scales(kind, *stored_scales(data, kind))
    numbers = stored_numbers(data, kind).reshape(*scales.shape, -1)
    weights: Floats = (numbers.astype(np.float32) - np.float32(kind.offset)) * scales[..., None]
    if minima is not None:
        weights += minima[..., None]
    return weights.reshape(shape)


def stored_numbers(data: Bytes, kind: BlockType) -> Bytes:
    """Return the numbers (n, weights) of some blocks (n, nbytes), from 0 to 2^bits − 1.

    That a byte of Q8_0 has a sign in the file makes no difference: 128 is added.
    """
    if kind is Q8_0:
        return data[:, 2:] ^ np.uint8(128)
    lower: Bytes
    upper: Bytes
    if kind is Q6_K:
        # Each half of a block has 64 bytes of lower bits and 32 of upper ones, two a weight.
        lower = _nibbles(data[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
        upper = data[:, 128:192].reshape(-1, 2, 1, 32) >> _COUNT[:8:2] & 3
    elif kind in (Q4_K, Q5_K):
        # 32 bytes have the lower bits of 64 weights, the first 32 below.
        lower = _nibbles(data[:, -128:].reshape(-1, 4, 32)).reshape(-1, 256)
        # Bit g of byte i belongs to weight i of group g.
        upper = data[:, 16:48].reshape(-1, 1, 32) >> _COUNT & 1
    else:
        lower = _nibbles(data[:, -16:])
        upper = np.unpackbits(data[:, -20:-16], axis=-1, bitorder="little")
    if kind.bits > 4:
        lower |= upper.reshape(lower.shape) << 4
    return lower


def stored_scales(data: Bytes, kind: BlockType) -> tuple[Bytes, Bytes]:
    """Return what the scales of some blocks (n, nbytes) are made of: float16 numbers (n, 1 or 2) as
    uint16, and of K formats the whole numbers (n, 16) that they are multiplied with.

    Of Q4_K and Q5_K, these are the scale of the first group, its minimum, those of the second, …
    """
    if kind is Q6_K:
        return _halves(data[:, 208:]), data[:, 192:208]
    if kind in (Q4_K, Q5_K):
        return _halves(data[:, :4]), _unpack_6_bits(data[:, 4:16])
    return _halves(data[:, : 2 * kind.scales]), data[:, :0]


def float_scales(kind: BlockType, halves: Bytes, whole: Bytes) -> tuple[Floats, Floats | None]:
    """Return the scales (…, groups) that are made of stored ones (…, k), and the minima, if any."""
    floats = halves.view(np.float16).astype(np.float32)
    scale, least = floats[..., :1], floats[..., 1:]
    if kind is Q6_K:
        return scale * whole.view(np.int8), None
    if whole.size:
        return scale * whole[..., ::2], -(least * whole[..., 1::2])
    return scale, least if least.size else None


def _unpack_6_bits(data: Bytes) -> Bytes:
    """Return the scale and the minimum of each group of a Q4_K or Q5_K block, in turn: (n, 16).

    `data` (n, 12) has the first four of both in the lower bits of bytes 0-3 and 4-7. Of the other
    four, the lower halves are in bytes 8-11, and the upper two bits on top of bytes 0-3 and 4-7.
    """
    first, second, last = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = np.concatenate((first & 63, last & 15 | first >> 6 << 4), axis=1)
    minima = np.concatenate((second & 63, last >> 4 | second >> 6 << 4), axis=1)
    return np.stack((scales, minima), axis=2).reshape(-1, 16)


def _nibbles(data: Bytes) -> Bytes:
    """Return the lower halves of some bytes (n, …, k), then the upper ones: (n, …, 2k)."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _halves(data: Bytes) -> Bytes:
    """Return float16 numbers (n, bytes/2) as their bits."""
    return np.ascontiguousarray(data).view("<u2")
