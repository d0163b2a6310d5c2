"""Floats that numpy lacks: bfloat16, kept as its bits, and the 8-bit floats of some files."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BFLOAT16 = np.dtype("V2")
"""The dtype of bfloat16: the upper 16 bits of a float32, as two opaque bytes.

`array.view(np.uint16)` has the bits. The dtype is not uint16, because numpy would compute with the
bits as whole numbers; it refuses to compute with opaque bytes.
"""
_PIECE = 1 << 20  # values that are converted at a time, so that no second copy is made
_QUIET = 0x40  # the highest bit of a fraction: set, it keeps a NaN from becoming infinity


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the usual name of a dtype: `bfloat16`, `float32`."""
    return "bfloat16" if dtype == BFLOAT16 else dtype.name


def to_float32(array: Array, *, copy: bool = False) -> NDArray[np.float32]:
    """Return the values as float32, which is exact for smaller floats.

    A float32 array is returned itself, unless `copy`.
    """
    if array.dtype != BFLOAT16:
        return array.astype(np.float32, copy=copy)
    bits = array.view(np.uint16).astype(np.uint32)
    bits <<= 16  # in place: the widened weights are in memory once
    return bits.view(np.float32)


def convert(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return the values in another dtype, rounded to the nearest; the array itself if it has it."""
    if array.dtype == dtype:
        return array
    if dtype == np.float32:
        return to_float32(array)
    if BFLOAT16 not in (array.dtype, dtype):
        return array.astype(dtype)
    source, result = array.reshape(-1), np.empty(array.size, dtype)
    for start in range(0, array.size, _PIECE):
        piece = to_float32(source[start : start + _PIECE])
        result[start : start + _PIECE] = _to_bfloat16(piece) if dtype == BFLOAT16 else piece
    return result.reshape(array.shape)


def _to_bfloat16(values: NDArray[np.float32]) -> Array:
    """Return float32 values (n,) as bfloat16, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    upper = bits >> 16  # rounded toward zero
    # Half of the last place is added; a tie goes up only from an odd number.
    rounded = (bits + (0x7FFF + (upper & 1))) >> 16
    bits16 = np.where(np.isnan(values), upper | _QUIET, rounded).astype(np.uint16)
    return bits16.view(BFLOAT16)


def float8_to_float32(codes: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Return the values of 8-bit floats, given as their bits. `name` is F8_E4M3 or F8_E5M2."""
    # Both are short forms of float16, which has 5 bits of exponent and 10 of fraction.
    every = np.arange(256, dtype=np.uint16)
    if name == "F8_E5M2":
        return (every << 8).view(np.float16).astype(np.float32)[codes]
    # 4 bits of exponent, whose bias is 7 and not 15: 2^8 makes up for it.
    values = ((every & 0x80) << 8 | (every & 0x7F) << 7).view(np.float16).astype(np.float32) * 256
    values[every & 0x7F == 0x7F] = np.nan  # this format has no infinity
    return values[codes]


def is_finite(array: Array) -> bool:
    """Tell whether all values are finite.

    Read as integers, the floats of one sign are in order: finite, infinity, NaN. The maximum of the
    signed integers is that of the positive floats, the maximum of the unsigned ones that of the
    negative floats. Two maxima take a seventh of the time of `np.isfinite`, and no memory.
    """
    unsigned = array.reshape(-1).view(f"u{array.itemsize}")
    if not unsigned.size:
        return True
    signed = unsigned.view(f"i{array.itemsize}")
    infinities = convert(np.array([np.inf, -np.inf], np.float32), array.dtype)
    infinity, minus_infinity = infinities.view(unsigned.dtype)
    return bool(signed.max() < infinity and unsigned.max() < minus_infinity)
