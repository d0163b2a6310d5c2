"""How numbers of 8 bits or fewer lie in memory, for a processor to multiply 16 rows at once.

The numbers of the rows lie together: four inputs of the first row, four of the second, … A byte
holds a number, from 0 on. In 4 bits it holds two: the lower half one of an even quad of inputs, the
upper half one of the quad after it. In 5 and 6 bits the upper bits follow those of the group.
"""

import numpy as np

from minillm_repl.model.blocks import BlockType, Bytes

PANEL_ROWS = 16  # rows that lie side by side
GROUP_SIZE = 32  # inputs of a row that share a scale
_QUADS = 8  # of a group: four inputs of a row lie together
_LOWER_BYTES = 4 * GROUP_SIZE * PANEL_ROWS // 8  # of a group: its numbers' lower four bits


def whole_panels(rows: Bytes, filler: int) -> Bytes:
    """Return rows (n, …) as panels (panels, 16, …), filled up."""
    panels = -(-len(rows) // PANEL_ROWS)
    if len(rows) < panels * PANEL_ROWS:
        padded = np.full((panels * PANEL_ROWS, *rows.shape[1:]), filler, rows.dtype)
        padded[: len(rows)] = rows  # the rest of the last panel are rows of no matrix
        rows = padded
    return rows.reshape(panels, PANEL_ROWS, *rows.shape[1:])


def pack(numbers: Bytes, bits: int) -> Bytes:
    """Return numbers (panels, 16, inputs) as they lie in memory: (panels, groups, bytes)."""
    panels, _rows, inputs = numbers.shape
    groups = inputs // GROUP_SIZE
    # (panels, 16, inputs) -> (panels, groups, quads, 16, 4)
    quads = numbers.reshape(panels, PANEL_ROWS, groups, _QUADS, 4).transpose(0, 2, 3, 1, 4)
    if bits == 8:
        return quads.reshape(panels, groups, -1)
    lower = quads & 15  # two quads share a byte
    planes = [lower[:, :, ::2] | lower[:, :, 1::2] << 4]
    if bits > 4:
        # (panels, groups, bytes, quads of a byte, 16, 4)
        upper = (quads >> 4).reshape(panels, groups, bits - 4, -1, PANEL_ROWS, 4)
        planes.append(np.bitwise_or.reduce(upper << _shifts(bits), axis=3))
    return np.concatenate([plane.reshape(panels, groups, -1) for plane in planes], axis=2)


def unpack(packed: Bytes, bits: int) -> Bytes:
    """Return the numbers (rows, inputs) of whole panels."""
    panels, groups, _bytes = packed.shape
    quads = packed
    if bits < 8:
        lower = packed[:, :, :_LOWER_BYTES].reshape(panels, groups, -1, 1, PANEL_ROWS, 4)
        quads = np.concatenate((lower & 15, lower >> 4), axis=3)  # even quads, odd quads
        quads = quads.reshape(panels, groups, _QUADS, PANEL_ROWS, 4)
    if 4 < bits < 8:
        upper = packed[:, :, _LOWER_BYTES:].reshape(panels, groups, bits - 4, 1, PANEL_ROWS, 4)
        upper = upper >> _shifts(bits) & np.uint8((1 << bits - 4) - 1)
        quads |= upper.reshape(quads.shape) << 4
    # -> (panels, 16, groups, quads, 4): a row's inputs in their order
    quads = quads.reshape(panels, groups, _QUADS, PANEL_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return quads.reshape(panels * PANEL_ROWS, groups * GROUP_SIZE)


def _shifts(bits: int) -> Bytes:
    """Return where a byte has the upper bits of eight quads, or, of 6 bits, of four: (quads, 1, 1).

    The lower bits of number j of a quad, and the upper ones, are in byte j of 4.
    """
    return np.array(range(0, 8, bits - 4), np.uint8)[:, None, None]


def pack_scales(halves: Bytes, whole: Bytes) -> Bytes:
    """Return 16-bit floats (panels, 16, blocks, k) and bytes (panels, 16, blocks, j) as they lie in
    memory: (panels, blocks, bytes).
    """
    parts = [np.ascontiguousarray(part.transpose(0, 2, 3, 1)) for part in (halves, whole)]
    return np.concatenate(
        [part.view(np.uint8).reshape(*part.shape[:2], -1) for part in parts], axis=2
    )


def unpack_scales(scales: Bytes, kind: BlockType) -> tuple[Bytes, Bytes]:
    """Return the floats of 16 bits (rows, blocks, k), and bytes (rows, blocks, j), of panels."""
    panels, blocks, _bytes = scales.shape
    end = 2 * PANEL_ROWS * kind.scales  # bytes of the floats, which come first
    halves = np.ascontiguousarray(scales[:, :, :end]).view(np.uint16)
    by_rows = (
        part.reshape(panels, blocks, -1, PANEL_ROWS)
        .transpose(0, 3, 1, 2)
        .reshape(panels * PANEL_ROWS, blocks, -1)
        for part in (halves, scales[:, :, end:])
    )
    first, second = (np.ascontiguousarray(part) for part in by_rows)
    return first, second
