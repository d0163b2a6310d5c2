"""Weights in 8 or 4 bits times float32 activations: what a group's numbers give, times its scale.

For one token, 32 rows are worked on side by side, each in its lane, so that no sum goes across a
register. For many, they are widened once, and then multiplied as any others (products.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.compiling import compiled
from minillm_repl.generate.backends.compiled.lanes import LINE, array_at, fetch, floats, widen
from minillm_repl.generate.backends.compiled.products import MANY, by_panel, finish
from minillm_repl.generate.backends.compiled.tasks import claim, meet
from minillm_repl.generate.backends.compiled.tiles import (
    outer,
    plus,
    rows_from,
    rows_to,
    scaled,
    span,
    tile,
)
from minillm_repl.model.quantised import GROUP_SIZE, PANEL_ROWS

Floats = NDArray[np.float32]

_AHEAD = 8_192  # bytes: so far before they are needed, weights are asked for
_SCALES = np.empty(0, np.uint16)  # for their kind


@compiled
def grouped(
    counters: Any, size: Any, phase: Any, at: Any, like: Any, x: Any, y: Any, stream: Any, room: Any
) -> Any:  # fmt: skip
    """Multiply by a matrix, with its bias; add the result to `stream`, if that has rows. A task is
    32 of its rows.

    `at` begins with the addresses of the numbers (panels, groups, 32, bytes), the scales (panels,
    groups, 32) and the bias; x (t, inputs), y (t, rows).
    """
    count, inputs = x.shape
    rows = y.shape[1]
    panels, groups = (rows + PANEL_ROWS - 1) // PANEL_ROWS, (inputs + GROUP_SIZE - 1) // GROUP_SIZE
    weight = array_at(at[0], like, (panels * groups * GROUP_SIZE * span(like),))
    scales = array_at(at[1], _SCALES, (panels * groups * PANEL_ROWS,))
    bias, panel = floats(at[2], (rows,)), floats(room.panel_at, (inputs * PANEL_ROWS,))
    while True:
        task = claim(counters, phase)
        if task >= panels:
            break
        first, last = task * PANEL_ROWS, min(task * PANEL_ROWS + PANEL_ROWS, rows)
        if count >= MANY:
            _widen_rows(weight, scales, task * groups, inputs, panel)
            by_panel(panel, 0, x, y, first, last, room)
        else:
            for t in range(count):
                _put(_one(weight, scales, task * groups, x[t]), y[t], first, last, room)
        finish(y, first, last, bias, stream)
    return meet(counters, size, phase)


@compiled
def _one(w: Any, scales: Any, group: int, x: Floats) -> Any:
    """Return 32 rows, whose groups are those from `group` on, times one token."""
    n, y = len(x), tile(1)
    for first in range(0, n, GROUP_SIZE):
        at = group * GROUP_SIZE * span(w)
        for line in range(0, GROUP_SIZE * span(w), LINE):
            fetch(w, at + _AHEAD + line, LINE)
        y = plus(
            y,
            scaled(_group(w, at, x, first, min(first + GROUP_SIZE, n)), scales, group * PANEL_ROWS),
        )
        group += 1
    return y


@compiled
def _group(w: Any, at: int, x: Floats, first: int, last: int) -> Any:
    """Return what the whole numbers of a group of 32 rows give; four sums of each, so that none
    waits for itself.
    """
    a, b, c, d = tile(1), tile(1), tile(1), tile(1)
    step, fours = span(w), last - (last - first) % 4
    for i in range(first, fours, 4):
        a = outer(a, x, i, 0, w, at)
        b = outer(b, x, i + 1, 0, w, at + step)
        c = outer(c, x, i + 2, 0, w, at + 2 * step)
        d = outer(d, x, i + 3, 0, w, at + 3 * step)
        at += 4 * step
    for i in range(fours, last):
        a = outer(a, x, i, 0, w, at)
        at += step
    return plus(plus(a, b), plus(c, d))


@compiled
def _put(sums: Any, y: Floats, first: int, last: int, room: Any) -> None:
    """Store what 32 rows give, or as many as the last panel has."""
    if last - first == PANEL_ROWS:
        rows_to(sums, y, first, 0)
        return
    few = floats(room.few_at, (PANEL_ROWS,))
    rows_to(sums, few, 0, 0)
    for o in range(last - first):
        y[first + o] = few[o]


@compiled
def _widen_rows(w: Any, scales: Any, group: int, n: int, panel: Floats) -> None:
    """Put 32 rows, whose groups are those from `group` on, into `panel` (n, 32) as float32."""
    for i in range(n):
        numbers = rows_from(tile(1), w, (group * GROUP_SIZE + i) * span(w), 0)
        rows_to(
            scaled(numbers, scales, (group + i // GROUP_SIZE) * PANEL_ROWS),
            panel,
            i * PANEL_ROWS,
            0,
        )


@compiled
def widened(at: Any, like: Any, row: int, y: Floats) -> None:
    """Put one row of a matrix in 8 bits into y (inputs,)."""
    groups = (len(y) + GROUP_SIZE - 1) // GROUP_SIZE
    first = row // PANEL_ROWS * groups  # group of its panel
    weight = array_at(at[0], like, ((first + groups) * GROUP_SIZE * PANEL_ROWS,))
    scales = array_at(at[1], _SCALES, ((first + groups) * PANEL_ROWS,))
    for i in range(len(y)):
        number = np.float32(weight[(first * GROUP_SIZE + i) * PANEL_ROWS + row % PANEL_ROWS])
        y[i] = number * widen(scales[(first + i // GROUP_SIZE) * PANEL_ROWS + row % PANEL_ROWS])
