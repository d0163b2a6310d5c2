"""Weights in 8 or 4 bits times activations: whole numbers within a group of 32 inputs, float32 from group to group.

Sixteen rows are worked on side by side, each in its lane, so that no sum goes across a register. The activations are
rounded to 8 bits in groups of the same 32, by each thread for itself: that takes less time than meeting for it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.compiled.compiling import compiled
from minillm_repl.engine.compiled.integers import (
    add_products,
    all_sums,
    bits_of,
    first_half,
    four_for_all,
    second_half,
    to_floats,
)
from minillm_repl.engine.compiled.lanes import (
    LINE,
    all_of,
    array_at,
    bits_of_float,
    fetch,
    float_of_bits,
    floats,
    load,
    multiply_add,
    store,
    widen,
    zeros,
)
from minillm_repl.engine.compiled.products import finish
from minillm_repl.engine.compiled.room import FOUR, GROUP, LANES, PIECE
from minillm_repl.engine.compiled.tasks import claim, meet

Floats = NDArray[np.float32]

_TILES_AT_ONCE = 2  # of sixteen rows; they make one task
_TOKENS = 6  # of one set of registers
_AHEAD = 8_192  # bytes: so far before they are needed, weights are asked for


# For their kinds.
_SCALES, _BYTES, _INTS = np.empty(0, np.uint16), np.empty(0, np.int8), np.empty(0, np.int32)


@compiled
def grouped(
    counters: Any, size: Any, phase: Any, at: Any, like: Any, x: Any, y: Any, stream: Any, room: Any
) -> Any:  # fmt: skip
    """Multiply by a matrix, with its bias; add the result to `stream`, if that has rows. A task is 32 of its rows.

    `at` begins with the addresses of the matrix (tiles, groups, bytes), its scales (tiles, groups, 16) and its bias;
    x (t, inputs), y (t, rows).
    """
    count, rows = y.shape
    tiles, groups = (rows + LANES - 1) // LANES, (x.shape[1] + GROUP - 1) // GROUP
    weight = array_at(at[0], like, (tiles * groups * GROUP * LANES * bits_of(like) // 8,))
    scale = array_at(at[1], _SCALES, (tiles * groups * LANES,))
    bias = floats(at[2], (rows,))
    many = count - count % _TOKENS
    spare = floats(room.few_at, (LANES,))
    rounded(x, np.int32(1 << (bits_of(like) - 1)), room)
    while True:
        first = claim(counters, phase) * _TILES_AT_ONCE
        if first >= tiles:
            break
        last = min(first + _TILES_AT_ONCE, tiles)
        for tile in range(first, last):
            wide = min(LANES, rows - tile * LANES)
            for t in range(0, many, _TOKENS):
                a, b, c, d, e, f = _by_six(weight, scale, tile, groups, t, room)
                _put(y[t], tile * LANES, a, wide, spare)
                _put(y[t + 1], tile * LANES, b, wide, spare)
                _put(y[t + 2], tile * LANES, c, wide, spare)
                _put(y[t + 3], tile * LANES, d, wide, spare)
                _put(y[t + 4], tile * LANES, e, wide, spare)
                _put(y[t + 5], tile * LANES, f, wide, spare)
            for t in range(many, count):
                _put(y[t], tile * LANES, _by_one(weight, scale, tile, groups, t, room), wide, spare)
        finish(y, first * LANES, min(last * LANES, rows), bias, stream)
    return meet(counters, size, phase)


@compiled
def rounded(x: Floats, added: Any, room: Any) -> None:
    """Round x (t, inputs) to 8 bits in groups; `added` is what each weight was made larger by.

    x ≈ small · scale group by group; the last group is filled with zeros. `less` is what sums have too much, because
    all weights were made positive.
    """
    count, inputs = x.shape
    groups = (inputs + GROUP - 1) // GROUP
    small, scale = array_at(room.small_at, _BYTES, (count * groups * GROUP,)), floats(room.scale_at, (count * groups,))
    less = array_at(room.less_at, _INTS, (count * groups,))
    for t in range(count):
        row = x[t]
        for group in range(groups):
            first, last = group * GROUP, min(group * GROUP + GROUP, inputs)
            most = np.int32(0)
            for i in range(first, last):  # without their signs, the bits of floats are in the order of the floats
                most = max(most, np.int32(bits_of_float(row[i]) & np.int32(0x7FFFFFFF)))
            largest = float_of_bits(most)
            step = np.float32(127) / largest if largest > 0 else np.float32(0)
            place, total = t * groups + group, np.int32(0)
            for i in range(first, last):
                number = np.int32(np.rint(row[i] * step))
                small[place * GROUP + i - first] = number
                total = np.int32(total + number)
            for i in range(last, first + GROUP):
                small[place * GROUP + i - first] = 0
            scale[place], less[place] = largest / np.float32(127), -added * total


@compiled
def _by_one(w: Any, scales: Any, tile: int, groups: int, t: int, room: Any) -> Any:
    """Multiply sixteen rows with one token."""
    small, of_x = array_at(room.small_at, _BYTES, (PIECE * groups * GROUP,)), floats(room.scale_at, (PIECE * groups,))
    less = array_at(room.less_at, _INTS, (PIECE * groups,))
    y = zeros()
    each = GROUP * LANES * bits_of(w) // 8
    for g in range(groups):
        place, group = t * groups + g, tile * groups + g
        for line in range(0, each, LINE):
            fetch(w, group * each + _AHEAD + line, LINE)
        sums = all_sums(less[place])
        for four in range(0, GROUP // 2, FOUR):
            at, to = place * GROUP + four, group * each + four * LANES
            sums = add_products(first_half(w, to), four_for_all(small, at), sums)
            sums = add_products(second_half(w, to), four_for_all(small, at + GROUP // 2), sums)
        y = _add(y, sums, load(scales, group * LANES), of_x[place])
    return y


@compiled
def _by_six(w: Any, scales: Any, tile: int, groups: int, t: int, room: Any) -> Any:
    """Multiply sixteen rows with six tokens, so that weights are taken apart once for all."""
    small, of_x = array_at(room.small_at, _BYTES, (PIECE * groups * GROUP,)), floats(room.scale_at, (PIECE * groups,))
    less = array_at(room.less_at, _INTS, (PIECE * groups,))
    a, b, c, d, e, f = zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    each, apart = GROUP * LANES * bits_of(w) // 8, groups * GROUP
    for g in range(groups):
        p0, group = t * groups + g, tile * groups + g
        p1, p2, p3, p4, p5 = p0 + groups, p0 + 2 * groups, p0 + 3 * groups, p0 + 4 * groups, p0 + 5 * groups
        s0, s1, s2 = all_sums(less[p0]), all_sums(less[p1]), all_sums(less[p2])
        s3, s4, s5 = all_sums(less[p3]), all_sums(less[p4]), all_sums(less[p5])
        for four in range(0, GROUP // 2, FOUR):
            for half in range(2):
                to, at = group * each + four * LANES, p0 * GROUP + half * GROUP // 2 + four
                v = second_half(w, to) if half else first_half(w, to)
                s0 = add_products(v, four_for_all(small, at), s0)
                s1 = add_products(v, four_for_all(small, at + apart), s1)
                s2 = add_products(v, four_for_all(small, at + 2 * apart), s2)
                s3 = add_products(v, four_for_all(small, at + 3 * apart), s3)
                s4 = add_products(v, four_for_all(small, at + 4 * apart), s4)
                s5 = add_products(v, four_for_all(small, at + 5 * apart), s5)
        scale = load(scales, group * LANES)
        a, b, c = _add(a, s0, scale, of_x[p0]), _add(b, s1, scale, of_x[p1]), _add(c, s2, scale, of_x[p2])
        d, e, f = _add(d, s3, scale, of_x[p3]), _add(e, s4, scale, of_x[p4]), _add(f, s5, scale, of_x[p5])
    return a, b, c, d, e, f


@compiled
def _add(y: Any, sums: Any, scale: Any, of_activations: Any) -> Any:
    return multiply_add(to_floats(sums), multiply_add(scale, all_of(of_activations), zeros()), y)


@compiled
def _put(y: Floats, at: int, lanes: Any, count: int, spare: Floats) -> None:
    """Store the results of sixteen rows, or of as many as the last tile has."""
    if count == LANES:
        store(y, at, lanes)
    else:
        store(spare, 0, lanes)
        for row in range(count):
            y[at + row] = spare[row]


@compiled
def widened(at: Any, like: Any, row: int, y: Floats) -> None:
    """Put one row of a matrix in 8 bits into y (inputs,)."""
    groups = (len(y) + GROUP - 1) // GROUP
    first = row // LANES * groups  # group of its tile
    weight = array_at(at[0], like, ((first + groups) * GROUP * LANES,))
    scale = array_at(at[1], _SCALES, ((first + groups) * LANES,))
    for i in range(len(y)):
        group, four, place = first + i // GROUP, i % GROUP // FOUR, i % FOUR
        number = weight[group * GROUP * LANES + (four * LANES + row % LANES) * FOUR + place]
        y[i] = np.float32(np.int32(number) - 128) * widen(scale[group * LANES + row % LANES])
