"""Weights in 8 or 4 bits: groups of 32 along the inputs, each with a scale in bfloat16; and how they lie in memory."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.compiled.room import FOUR, GROUP, LANES, aligned
from minillm_repl.engine.compiled.team import default_size

Array = NDArray[Any]
Floats = NDArray[np.float32]

KINDS = {8: np.uint8, 4: np.int8}  # what arrays of them are to compiled code, which tells them apart by it
_AT_ONCE = 1 << 18  # numbers that a thread quantises at once, so that it takes no memory to speak of


def quantise(matrix: Array, bits: int) -> tuple[NDArray[np.int8], Floats]:
    """Return whole numbers (rows, inputs) and scales (rows, groups): matrix ≈ numbers · scale, group by group.

    The largest of a group becomes −2^(bits − 1), of which there is one more than of positive numbers.
    """
    rows, inputs = matrix.shape
    padded = np.zeros((rows, -(-inputs // GROUP) * GROUP), np.float32)
    padded[:, :inputs] = matrix
    groups = padded.reshape(rows, -1, GROUP)
    most, least = groups.max(axis=2), groups.min(axis=2)
    ends = 1 << (bits - 1)
    scale = _bfloat16(np.where(most > -least, most, least) / np.float32(-ends))
    groups /= np.where(scale, scale, np.float32(1))[:, :, None]
    np.clip(np.rint(groups, out=groups), -ends, ends - 1, out=groups)
    return padded[:, :inputs].astype(np.int8), scale


def lay_down(matrix: Array, bits: int) -> tuple[Array, NDArray[np.uint16]]:
    """Return the bytes of a quantised matrix (tiles, groups, bytes) and its scales (tiles, groups, 16).

    They lie as integers.py says; rows that the last tile lacks are of zeros.
    """
    rows, inputs = matrix.shape
    tiles, groups = -(-rows // LANES), -(-inputs // GROUP)
    numbers = aligned((tiles, groups, GROUP * LANES * bits // 8), KINDS[bits])
    scales = aligned((tiles, groups, LANES), np.uint16)
    step = max(1, _AT_ONCE // (inputs * LANES))

    def fill(first: int) -> None:
        last = min(first + step, tiles)
        small, scale = quantise(matrix[first * LANES : last * LANES], bits)
        whole = np.full(((last - first) * LANES, groups * GROUP), 1 << (bits - 1), np.uint8)
        whole[: len(small), :inputs] += small.view(np.uint8)
        apart = whole.reshape(-1, LANES, groups, 2, GROUP // 2 // FOUR, FOUR).transpose(3, 0, 2, 4, 1, 5)
        both = apart[0] | apart[1] << 4 if bits == 4 else np.ascontiguousarray(apart.transpose(1, 2, 0, 3, 4, 5))
        numbers[first:last] = both.reshape(last - first, groups, -1).view(numbers.dtype)
        filled = np.zeros(((last - first) * LANES, groups), np.float32)
        filled[: len(scale)] = scale
        scales[first:last] = (filled.view(np.uint32) >> 16).reshape(-1, LANES, groups).transpose(0, 2, 1)

    with ThreadPoolExecutor(default_size(), "rounding") as pool:
        list(pool.map(fill, range(0, tiles, step)))
    return numbers, scales


def _bfloat16(numbers: Floats) -> Floats:
    """Round to the nearest number that bfloat16 has."""
    bits = numbers.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
