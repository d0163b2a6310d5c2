"""What is done with a matrix, whatever it is kept in: numba chooses by the kind of the array
that is like it.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from minillm_repl.generate.backends.compiled.compiling import compiled
from minillm_repl.generate.backends.compiled.grouped import grouped, widened
from minillm_repl.generate.backends.compiled.lanes import array_at, floats, widen
from minillm_repl.generate.backends.compiled.products import plain, turned
from minillm_repl.model.quantised import PANEL_ROWS

LIKE = {
    "float32": np.empty(0, np.float32),
    "bfloat16": np.empty(0, np.uint16),
    "float16": np.empty(0, np.int16),
    "turned": np.empty((0, PANEL_ROWS), np.float32),
    "int8": np.empty(0, np.int8),
    "int4": np.empty(0, np.uint8),
}
"""What compiled code tells kinds of matrices apart by: an array like them."""


def product(
    counters: Any, size: Any, phase: Any, at: Any, like: Any, x: Any, y: Any, stream: Any, room: Any
) -> Any:
    """Multiply x (t, inputs) by a matrix into y (t, rows), with its bias; add that to `stream`, if
    it has rows.

    `at` begins with the addresses of the matrix, its scales and its bias; `room` is the
    thread's. Returns the next phase.
    """
    raise NotImplementedError  # compiled code finds what serves below


def row_of(at: Any, like: Any, row: Any, y: Any) -> None:
    """Put a matrix's row into y (inputs,); `at` begins with its address and its scales'."""
    raise NotImplementedError  # compiled code finds what serves below


@overload(product, strict=False)  # lambdas have no annotations
def _product(
    counters: Any, size: Any, phase: Any, at: Any, like: Any, x: Any, y: Any, stream: Any, room: Any  # noqa: ARG001
) -> Any:  # fmt: skip
    chosen = turned if _is_turned(like) else grouped if _is_grouped(like) else plain

    def code(counters, size, phase, at, like, x, y, stream, room):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return chosen(counters, size, phase, at, like, x, y, stream, room)

    return code


@overload(row_of, strict=False)
def _row_of(at: Any, like: Any, row: Any, y: Any) -> Any:  # noqa: ARG001
    if _is_turned(like):
        return lambda at, like, row, y: _from_panel(at, row, y)  # noqa: ARG005
    chosen = widened if _is_grouped(like) else _as_it_is
    return lambda at, like, row, y: chosen(at, like, row, y)  # noqa: PLW0108


def _is_turned(like: Any) -> bool:
    return bool(like.ndim > 1)


def _is_grouped(like: Any) -> bool:
    return like.dtype in (types.int8, types.uint8)


@compiled
def _as_it_is(at: Any, like: Any, row: Any, y: Any) -> None:
    numbers = array_at(at[0] + np.uint64(row * len(y) * like.itemsize), like, (len(y),))
    for i in range(len(y)):
        y[i] = widen(numbers[i])


@compiled
def _from_panel(at: Any, row: Any, y: Any) -> None:
    panel = floats(at[0], ((row // PANEL_ROWS + 1) * len(y) * PANEL_ROWS,))
    for i in range(len(y)):
        y[i] = panel[(row // PANEL_ROWS * len(y) + i) * PANEL_ROWS + row % PANEL_ROWS]
