"""Weights times activations: y[t, o] = Σ w[o, i] · x[t, i], rows o as the checkpoint has them.

For one token, memory is what limits: processors with AVX-512 read four rows side by side faster,
and those without one row after the other (docs/decisions.md). For many, arithmetic is: 32 rows are
widened and turned over once, and stay in a near cache while all tokens pass by, twelve at a time,
whose sums stay in registers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.compiling import compiled
from minillm_repl.generate.backends.compiled.lanes import (
    add,
    array_at,
    fetch,
    floats,
    load,
    multiply_add,
    store,
    total,
    turn,
    wide,
    widen,
    zeros,
)  # fmt: skip
from minillm_repl.generate.backends.compiled.room import LANES, PIECE, SPARE
from minillm_repl.generate.backends.compiled.tasks import claim, meet
from minillm_repl.generate.backends.compiled.tiles import outer, plus, rows_to, tile
from minillm_repl.model.quantised import PANEL_ROWS

Floats = NDArray[np.float32]

_ROWS = 4  # of them read side by side for one token
_ROWS_BY_LANES = _ROWS * LANES
_TOKENS, _FEW = 12, SPARE  # that 32 rows are multiplied with at once, and the last of them
MANY = 3  # tokens: from here on turning rows over takes less time than it saves
# bytes: so far before they are needed, weights are asked for; short rows fool the processor's own
# guess
_AHEAD = 8_192


@compiled
def plain(
    counters: Any, size: Any, phase: Any, at: Any, like: Any, x: Any, y: Any, stream: Any, room: Any
) -> Any:  # fmt: skip
    """Multiply by a matrix, with its bias; add the result to `stream`, if that has rows. A task is
    32 of its rows.

    `at` begins with the addresses of the matrix (rows, inputs), of nothing, and of its bias; x (t,
    inputs), y (t, rows).
    """
    count, inputs = x.shape
    rows = y.shape[1]
    weight = array_at(at[0], like, (rows * inputs,))
    bias = floats(at[2], (rows,))
    panel = floats(room.panel_at, (inputs * PANEL_ROWS,))
    while True:
        first = claim(counters, phase) * PANEL_ROWS
        if first >= rows:
            break
        last = min(first + PANEL_ROWS, rows)
        if count >= MANY:
            _turn_rows(weight, first, last, inputs, panel)
            by_panel(panel, 0, x, y, first, last, room)
        else:
            whole = first + (last - first) // _ROWS * _ROWS if wide() else first
            for t in range(count):
                for row in range(first, whole, _ROWS):
                    _one_by_four(weight, row * inputs, x[t], inputs, y[t], row)
                for row in range(whole, last):
                    y[t, row] = _one_row(weight, row * inputs, x[t], inputs)
        finish(y, first, last, bias, stream)
    return meet(counters, size, phase)


@compiled
def _dot(w: Any, at: int, x: Floats, first: int, last: int) -> Any:
    """Return the product of one row with one token, from input `first` on."""
    result = np.float32(0)
    for i in range(first, last):
        result += widen(w[at + i]) * x[i]
    return result


@compiled
def _one_by_four(w: Any, w0: int, x: Floats, n: int, y: Floats, row: int) -> None:
    """Four rows from w[w0] on, times one token, to four numbers from y[row] on."""
    w1, w2, w3 = w0 + n, w0 + 2 * n, w0 + 3 * n
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    side_by_side = n - n % LANES
    ahead = w0 + _AHEAD // w.itemsize
    for i in range(0, side_by_side, LANES):
        fetch(w, ahead + _ROWS * i, _ROWS_BY_LANES)
        v = load(x, i)
        a = multiply_add(load(w, w0 + i), v, a)
        b = multiply_add(load(w, w1 + i), v, b)
        c = multiply_add(load(w, w2 + i), v, c)
        d = multiply_add(load(w, w3 + i), v, d)
    y[row] = total(a) + _dot(w, w0, x, side_by_side, n)
    y[row + 1] = total(b) + _dot(w, w1, x, side_by_side, n)
    y[row + 2] = total(c) + _dot(w, w2, x, side_by_side, n)
    y[row + 3] = total(d) + _dot(w, w3, x, side_by_side, n)


@compiled
def _one_row(w: Any, at: int, x: Floats, n: int) -> Any:
    """Return one row, from w[at] on, times one token; four sums, so that none waits for itself."""
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    fours, side_by_side = n - n % _ROWS_BY_LANES, n - n % LANES
    for i in range(0, fours, _ROWS_BY_LANES):
        a = multiply_add(load(w, at + i), load(x, i), a)
        b = multiply_add(load(w, at + i + LANES), load(x, i + LANES), b)
        c = multiply_add(load(w, at + i + 2 * LANES), load(x, i + 2 * LANES), c)
        d = multiply_add(load(w, at + i + 3 * LANES), load(x, i + 3 * LANES), d)
    for i in range(fours, side_by_side, LANES):
        a = multiply_add(load(w, at + i), load(x, i), a)
    return total(add(add(a, b), add(c, d))) + _dot(w, at, x, side_by_side, n)


@compiled
def _turn_rows(w: Any, first: int, last: int, n: int, turned: Floats) -> None:
    """Turn 32 rows over: `turned` (n, 32) has what belongs to one input side by side; rows past
    `last` are 0.
    """
    for block in range(0, PANEL_ROWS, LANES):
        row = first + block
        side_by_side = n - n % LANES if row + LANES <= last else 0
        for i in range(0, side_by_side, LANES):
            turn(w, row * n + i, n, turned, i * PANEL_ROWS + block, PANEL_ROWS)
        for i in range(side_by_side, n):
            for r in range(LANES):
                number = widen(w[(row + r) * n + i]) if row + r < last else np.float32(0)
                turned[i * PANEL_ROWS + block + r] = number


@compiled
def turned(
    counters: Any, size: Any, phase: Any, at: Any, _like: Any, x: Any, y: Any, stream: Any,
    room: Any
) -> Any:  # fmt: skip
    """Do as `plain` with a matrix in panels, 32 rows turned over each: (panels, inputs, 32)."""
    inputs, rows = x.shape[1], y.shape[1]
    weight = floats(at[0], ((rows + PANEL_ROWS - 1) // PANEL_ROWS * PANEL_ROWS * inputs,))
    bias = floats(at[2], (rows,))
    while True:
        first = claim(counters, phase) * PANEL_ROWS
        if first >= rows:
            break
        last = min(first + PANEL_ROWS, rows)
        by_panel(weight, first * inputs, x, y, first, last, room)
        finish(y, first, last, bias, stream)
    return meet(counters, size, phase)


@compiled
def by_panel(panel: Floats, at: int, x: Any, y: Any, first: int, last: int, room: Any) -> None:
    """Multiply 32 rows, turned over from panel[at] on, with all tokens; their products are y's
    `first` to `last`.

    The last tokens are worked on as if there were more: `x` and `y`, if of two tokens or more, have
    room for that.
    """
    if last - first == PANEL_ROWS:
        _all_tokens(panel, at, x, y, first, y.shape[1])
        return
    few = floats(room.few_at, ((PIECE + SPARE) * PANEL_ROWS,))
    _all_tokens(panel, at, x, few, 0, PANEL_ROWS)
    for t in range(len(x)):
        for o in range(last - first):
            y[t, first + o] = few[t * PANEL_ROWS + o]


@compiled
def _all_tokens(panel: Floats, at: int, x: Any, out: Floats, to: int, step: int) -> None:
    """Put 32 rows times each token into `out.flat[to]`, `step` further for each token."""
    count, n = x.shape
    if count == 1:
        rows_to(_one(panel, at, x, n), out, to, step)
        return
    many = count - count % _TOKENS
    for t in range(0, many, _TOKENS):
        rows_to(_some(tile(_TOKENS), panel, at, x, t * n, n), out, t * step + to, step)
    for t in range(many, count, _FEW):
        rows_to(_some(tile(_FEW), panel, at, x, t * n, n), out, t * step + to, step)


@compiled
def _some(sums: Any, panel: Floats, at: int, x: Floats, xt: int, n: int) -> Any:
    """Return 32 rows times some tokens from x[xt] on, whose sums are given as zeros."""
    for i in range(n):
        sums = outer(sums, x, xt + i, n, panel, at + i * PANEL_ROWS)
    return sums


@compiled
def _one(panel: Floats, at: int, x: Floats, n: int) -> Any:
    """Return 32 rows times one token; four sums of each, so that none waits for itself."""
    a, b, c, d = tile(1), tile(1), tile(1), tile(1)
    for i in range(0, n - n % 4, 4):
        a = outer(a, x, i, n, panel, at + i * PANEL_ROWS)
        b = outer(b, x, i + 1, n, panel, at + (i + 1) * PANEL_ROWS)
        c = outer(c, x, i + 2, n, panel, at + (i + 2) * PANEL_ROWS)
        d = outer(d, x, i + 3, n, panel, at + (i + 3) * PANEL_ROWS)
    for i in range(n - n % 4, n):
        a = outer(a, x, i, n, panel, at + i * PANEL_ROWS)
    return plus(plus(a, b), plus(c, d))


@compiled
def finish(y: Floats, first: int, last: int, bias: Floats, stream: Floats) -> None:
    """Add the bias to rows `first` to `last`, and them to the stream: each where there is one."""
    side_by_side = last - (last - first) % LANES
    rows = y.shape[1]
    for t in range(len(y)):
        at = t * rows
        if len(bias):
            for o in range(first, side_by_side, LANES):
                store(y, at + o, add(load(y, at + o), load(bias, o)))
            for o in range(side_by_side, last):
                y[t, o] += bias[o]
        if len(stream):
            for o in range(first, side_by_side, LANES):
                store(stream, at + o, add(load(stream, at + o), load(y, at + o)))
            for o in range(side_by_side, last):
                stream[t, o] += y[t, o]
