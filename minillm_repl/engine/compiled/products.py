"""Weights times activations: y[t, o] = Σ w[o, i] · x[t, i], rows o of a matrix as the checkpoint has it.

For one token, memory is what limits: four rows are read side by side. For many, arithmetic is: six tokens times four
rows stay in registers, and sixteen rows in the nearest cache while all tokens pass by.
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
    total,
    widen,
    zeros,
)  # fmt: skip
from minillm_repl.engine.compiled.team import claim, meet

Floats = NDArray[np.float32]

_ROWS_AT_ONCE = 32  # rows of a matrix that make one task
_TILE = 16  # rows that stay in the nearest cache
_ROWS, _TOKENS = 4, 6  # of one set of registers
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
    many = count - count % _TOKENS
    while True:
        first = claim(counters, phase) * _ROWS_AT_ONCE
        if first >= rows:
            break
        last = min(first + _ROWS_AT_ONCE, rows)
        whole = first + (last - first) // _ROWS * _ROWS
        for tile in range(first, whole, _TILE):
            for t in range(0, many, _TOKENS):
                for row in range(tile, min(tile + _TILE, whole), _ROWS):
                    _six_by_four(weight, row * inputs, flat_x, t * inputs, inputs, flat_y, t * rows + row, rows)
            for t in range(many, count):
                for row in range(tile, min(tile + _TILE, whole), _ROWS):
                    _one_by_four(weight, row * inputs, flat_x, t * inputs, inputs, flat_y, t * rows + row)
        for row in range(whole, last):
            for t in range(count):
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
def _six_by_four(w: Any, w0: int, x: Floats, x0: int, n: int, y: Floats, y0: int, rows: int) -> None:
    """Four rows times six tokens: 24 sums in registers, so that a number fetched is used four or six times."""
    w1, w2, w3 = w0 + n, w0 + 2 * n, w0 + 3 * n
    x1, x2, x3, x4, x5 = x0 + n, x0 + 2 * n, x0 + 3 * n, x0 + 4 * n, x0 + 5 * n
    a0, a1, a2, a3, a4, a5 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    b0, b1, b2, b3, b4, b5 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    c0, c1, c2, c3, c4, c5 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    d0, d1, d2, d3, d4, d5 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    side_by_side = n - n % LANES
    for i in range(0, side_by_side, LANES):
        a, b, c, d = load(w, w0 + i), load(w, w1 + i), load(w, w2 + i), load(w, w3 + i)
        v = load(x, x0 + i)
        a0, b0, c0, d0 = multiply_add(a, v, a0), multiply_add(b, v, b0), multiply_add(c, v, c0), multiply_add(d, v, d0)
        v = load(x, x1 + i)
        a1, b1, c1, d1 = multiply_add(a, v, a1), multiply_add(b, v, b1), multiply_add(c, v, c1), multiply_add(d, v, d1)
        v = load(x, x2 + i)
        a2, b2, c2, d2 = multiply_add(a, v, a2), multiply_add(b, v, b2), multiply_add(c, v, c2), multiply_add(d, v, d2)
        v = load(x, x3 + i)
        a3, b3, c3, d3 = multiply_add(a, v, a3), multiply_add(b, v, b3), multiply_add(c, v, c3), multiply_add(d, v, d3)
        v = load(x, x4 + i)
        a4, b4, c4, d4 = multiply_add(a, v, a4), multiply_add(b, v, b4), multiply_add(c, v, c4), multiply_add(d, v, d4)
        v = load(x, x5 + i)
        a5, b5, c5, d5 = multiply_add(a, v, a5), multiply_add(b, v, b5), multiply_add(c, v, c5), multiply_add(d, v, d5)
    _put(y, y0, a0, b0, c0, d0)
    _put(y, y0 + rows, a1, b1, c1, d1)
    _put(y, y0 + 2 * rows, a2, b2, c2, d2)
    _put(y, y0 + 3 * rows, a3, b3, c3, d3)
    _put(y, y0 + 4 * rows, a4, b4, c4, d4)
    _put(y, y0 + 5 * rows, a5, b5, c5, d5)
    if side_by_side < n:
        for t in range(_TOKENS):
            for row in range(_ROWS):
                y[y0 + t * rows + row] += _dot(w, w0 + row * n, x, x0 + t * n, side_by_side, n)


@compiled
def _put(y: Floats, at: int, a: Any, b: Any, c: Any, d: Any) -> None:
    y[at], y[at + 1], y[at + 2], y[at + 3] = total(a), total(b), total(c), total(d)


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
