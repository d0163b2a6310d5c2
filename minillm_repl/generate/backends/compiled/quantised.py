"""The rounding of weights to 8 or 4 bits, when a model is opened."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.room import aligned
from minillm_repl.generate.backends.compiled.team import default_size
from minillm_repl.model.quantised import GROUP_SIZE, PANEL_ROWS, QuantisedMatrix

Array = NDArray[Any]
Floats = NDArray[np.float32]

# numbers that a thread quantises at once, so that it takes no memory to speak of
_AT_ONCE = 1 << 18


def rounded(matrix: Array, bits: int) -> tuple[NDArray[np.int8], Floats]:
    """Return whole numbers (rows, inputs) and scales (rows, groups): matrix ≈ numbers · scale,
    group by group.

    The largest of a group becomes −2^(bits − 1), of which there is one more than of positive
    numbers.
    """
    rows, inputs = matrix.shape
    padded = np.zeros((rows, -(-inputs // GROUP_SIZE) * GROUP_SIZE), np.float32)
    padded[:, :inputs] = matrix
    groups = padded.reshape(rows, -1, GROUP_SIZE)
    most, least = groups.max(axis=2), groups.min(axis=2)
    ends = 1 << (bits - 1)
    scale = _bfloat16(np.where(most > -least, most, least) / np.float32(-ends))
    groups /= np.where(scale, scale, np.float32(1))[:, :, None]
    np.clip(np.rint(groups, out=groups), -ends, ends - 1, out=groups)
    return padded[:, :inputs].astype(np.int8), scale


def quantise(matrix: Array, bits: int) -> QuantisedMatrix:
    """Return a matrix in 8 or 4 bits; rows that the last panel lacks are of zeros."""
    rows, inputs = matrix.shape
    panels, groups = -(-rows // PANEL_ROWS), -(-inputs // GROUP_SIZE)
    numbers = aligned((panels, groups, GROUP_SIZE, PANEL_ROWS * bits // 8), np.int8)
    scales = aligned((panels, groups, PANEL_ROWS), np.uint16)
    step = max(1, _AT_ONCE // (inputs * PANEL_ROWS))

    def fill(first: int) -> None:
        last = min(first + step, panels)
        small, scale = rounded(matrix[first * PANEL_ROWS : last * PANEL_ROWS], bits)
        whole = np.zeros(((last - first) * PANEL_ROWS, groups * GROUP_SIZE), np.int8)
        whole[: len(small), :inputs] = small
        # (panels, groups, 32 inputs, 32 rows)
        apart = whole.reshape(-1, PANEL_ROWS, groups, GROUP_SIZE).transpose(0, 2, 3, 1)
        half = PANEL_ROWS // 2
        numbers[first:last] = (
            apart if bits == 8 else apart[..., :half] & 15 | apart[..., half:] << 4
        )
        filled = np.zeros(((last - first) * PANEL_ROWS, groups), np.float32)
        filled[: len(scale)] = scale
        scales[first:last] = (
            (filled.view(np.uint32) >> 16).reshape(-1, PANEL_ROWS, groups).transpose(0, 2, 1)
        )

    with ThreadPoolExecutor(default_size(), "rounding") as pool:
        list(pool.map(fill, range(0, panels, step)))
    return QuantisedMatrix((rows, inputs), numbers, scales)


def _bfloat16(numbers: Floats) -> Floats:
    """Round to the nearest number that bfloat16 has."""
    bits = numbers.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
