"""Weights times activations: y[t, o] = Σ w[o, i] · x[t, i], rows o of a matrix as the checkpoint has it.

For one token, memory is what limits: four rows are read side by side. For many, arithmetic is: 32 rows are widened and
turned over once, and stay in a near cache while all tokens pass by, twelve at a time, whose sums stay in registers.
"""

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from minillm_repl.engine.compiled.compiling import compiled
from minillm_repl.engine.compiled.lanes import (
    LANES,
    fetch,
    floats,
    load,
    multiply_add,
    pointer,
    spread,
    store,
    total,
    turn,
    widen,
    zeros,
)  # fmt: skip
from minillm_repl.engine.compiled.team import claim, meet

Floats = NDArray[np.float32]

_ROWS_AT_ONCE = 32  # rows of a matrix that make one task
_ROWS = 4  # of them read side by side for one token
_TOKENS = 12  # that 32 rows are multiplied with at once
_MANY = 3  # tokens: from here on turning rows over takes less time than it saves
_AHEAD = 8_192  # bytes: so far before they are needed, weights are asked for; short rows fool the processor's own guess
_LINE = 64  # bytes that memory hands over at once


@compiled
def plain(counters: Any, size: Any, phase: Any, at: Any, like: Any, x: Any, y: Any, stream: Any) -> Any:
    """Multiply by a matrix, with its bias; add the result to `stream`, if that has rows. A task is 32 of its rows.

    `at` begins with the addresses of the matrix (rows, inputs), of nothing, and of its bias; x (t, inputs), y (t,
    rows).
    """
    count, inputs = x.shape
    rows = y.shape[1]
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    weight = carray(pointer(at[0], like), (rows * inputs,))
    bias = floats(at[2], rows)
    many = count >= _MANY
    turned = np.empty(inputs * _ROWS_AT_ONCE if many else 0, np.float32)
    tile = np.empty((_TOKENS if many else 0, _ROWS_AT_ONCE), np.float32)
    while True:
        first = claim(counters, phase) * _ROWS_AT_ONCE
        if first >= rows:
            break
        last = min(first + _ROWS_AT_ONCE, rows)
        if many:
            _turn_rows(weight, first, last, inputs, turned)
            for t in range(0, count, _TOKENS):
                _twelve_by_32(turned, inputs, flat_x, t, count - 1, tile)
                for each in range(min(_TOKENS, count - t)):
                    for o in range(last - first):
                        y[t + each, first + o] = tile[each, o]
        else:
            whole = first + (last - first) // _ROWS * _ROWS
            for t in range(count):
                for row in range(first, whole, _ROWS):
                    _one_by_four(weight, row * inputs, flat_x, t * inputs, inputs, flat_y, t * rows + row)
                for row in range(whole, last):
                    flat_y[t * rows + row] = _dot(weight, row * inputs, flat_x, t * inputs, 0, inputs)
        finish(y, first, last, bias, stream)
    return meet(counters, size, phase)


@compiled
def _dot(w: Any, at: int, x: Floats, xt: int, first: int, last: int) -> Any:
    """Return the product of one row with one token, from input `first` on."""
    result = np.float32(0)
    for i in range(first, last):
        result += widen(w[at + i]) * x[xt + i]
    return result


@compiled
def _one_by_four(w: Any, w0: int, x: Floats, xt: int, n: int, y: Floats, yt: int) -> None:
    """Four rows from w[w0] on, times the token at x[xt], to four numbers at y[yt]."""
    w1, w2, w3 = w0 + n, w0 + 2 * n, w0 + 3 * n
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    side_by_side = n - n % LANES
    ahead = w0 + _AHEAD // w.itemsize
    for i in range(0, side_by_side, LANES):
        for line in range(0, _ROWS * LANES, _LINE // w.itemsize):
            fetch(w, ahead + _ROWS * i + line)
        v = load(x, xt + i)
        a = multiply_add(load(w, w0 + i), v, a)
        b = multiply_add(load(w, w1 + i), v, b)
        c = multiply_add(load(w, w2 + i), v, c)
        d = multiply_add(load(w, w3 + i), v, d)
    y[yt] = total(a) + _dot(w, w0, x, xt, side_by_side, n)
    y[yt + 1] = total(b) + _dot(w, w1, x, xt, side_by_side, n)
    y[yt + 2] = total(c) + _dot(w, w2, x, xt, side_by_side, n)
    y[yt + 3] = total(d) + _dot(w, w3, x, xt, side_by_side, n)


@compiled
def _turn_rows(w: Any, first: int, last: int, n: int, turned: Floats) -> None:
    """Turn 32 rows over: `turned` (n, 32) has what belongs to one input side by side; rows past `last` are 0."""
    for block in range(0, _ROWS_AT_ONCE, LANES):
        row = first + block
        side_by_side = n - n % LANES if row + LANES <= last else 0
        for i in range(0, side_by_side, LANES):
            turn(w, row * n + i, n, turned, i * _ROWS_AT_ONCE + block, _ROWS_AT_ONCE)
        for i in range(side_by_side, n):
            for r in range(LANES):
                number = widen(w[(row + r) * n + i]) if row + r < last else np.float32(0)
                turned[i * _ROWS_AT_ONCE + block + r] = number


@compiled
def _twelve_by_32(turned: Floats, n: int, x: Floats, t: int, last: int, tile: Floats) -> None:
    """Multiply 32 rows, turned over, with twelve tokens from `t` on: 24 registers of sums. Past the last, it again."""
    x0, x1, x2, x3 = min(t, last) * n, min(t + 1, last) * n, min(t + 2, last) * n, min(t + 3, last) * n
    x4, x5, x6, x7 = min(t + 4, last) * n, min(t + 5, last) * n, min(t + 6, last) * n, min(t + 7, last) * n
    x8, x9, x10, x11 = min(t + 8, last) * n, min(t + 9, last) * n, min(t + 10, last) * n, min(t + 11, last) * n
    a0, a1, a2, a3 = zeros(), zeros(), zeros(), zeros()
    a4, a5, a6, a7 = zeros(), zeros(), zeros(), zeros()
    a8, a9, a10, a11 = zeros(), zeros(), zeros(), zeros()
    b0, b1, b2, b3 = zeros(), zeros(), zeros(), zeros()
    b4, b5, b6, b7 = zeros(), zeros(), zeros(), zeros()
    b8, b9, b10, b11 = zeros(), zeros(), zeros(), zeros()
    for i in range(n):
        p, q = load(turned, i * _ROWS_AT_ONCE), load(turned, i * _ROWS_AT_ONCE + LANES)
        v = spread(x, x0 + i)
        a0, b0 = multiply_add(v, p, a0), multiply_add(v, q, b0)
        v = spread(x, x1 + i)
        a1, b1 = multiply_add(v, p, a1), multiply_add(v, q, b1)
        v = spread(x, x2 + i)
        a2, b2 = multiply_add(v, p, a2), multiply_add(v, q, b2)
        v = spread(x, x3 + i)
        a3, b3 = multiply_add(v, p, a3), multiply_add(v, q, b3)
        v = spread(x, x4 + i)
        a4, b4 = multiply_add(v, p, a4), multiply_add(v, q, b4)
        v = spread(x, x5 + i)
        a5, b5 = multiply_add(v, p, a5), multiply_add(v, q, b5)
        v = spread(x, x6 + i)
        a6, b6 = multiply_add(v, p, a6), multiply_add(v, q, b6)
        v = spread(x, x7 + i)
        a7, b7 = multiply_add(v, p, a7), multiply_add(v, q, b7)
        v = spread(x, x8 + i)
        a8, b8 = multiply_add(v, p, a8), multiply_add(v, q, b8)
        v = spread(x, x9 + i)
        a9, b9 = multiply_add(v, p, a9), multiply_add(v, q, b9)
        v = spread(x, x10 + i)
        a10, b10 = multiply_add(v, p, a10), multiply_add(v, q, b10)
        v = spread(x, x11 + i)
        a11, b11 = multiply_add(v, p, a11), multiply_add(v, q, b11)
    out = tile.reshape(-1)
    _put(out, 0, a0, b0)
    _put(out, 1, a1, b1)
    _put(out, 2, a2, b2)
    _put(out, 3, a3, b3)
    _put(out, 4, a4, b4)
    _put(out, 5, a5, b5)
    _put(out, 6, a6, b6)
    _put(out, 7, a7, b7)
    _put(out, 8, a8, b8)
    _put(out, 9, a9, b9)
    _put(out, 10, a10, b10)
    _put(out, 11, a11, b11)


@compiled
def _put(out: Floats, each: int, a: Any, b: Any) -> None:
    store(out, each * _ROWS_AT_ONCE, a)
    store(out, each * _ROWS_AT_ONCE + LANES, b)


@compiled
def finish(y: Floats, first: int, last: int, bias: Floats, stream: Floats) -> None:
    """Add the bias to rows `first` to `last`, and them to the stream: each where there is one."""
    for t in range(len(y)):
        row = y[t]
        if len(bias):
            for o in range(first, last):
                row[o] += bias[o]
        if len(stream):
            for o in range(first, last):
                stream[t, o] += row[o]
