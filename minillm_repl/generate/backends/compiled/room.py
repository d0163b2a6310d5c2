"""Where everything lies that a pass works with: one structure for each thread, filled in here, read
by compiled code.

It needs no numba, so that a process whose machine code is kept need not import it.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.model.config import ACTIVATIONS, AnyConfig
from minillm_repl.model.quantised import PANEL_ROWS

Array = NDArray[Any]

LANES = 16  # numbers that are worked on side by side
WIDTH = 2 * LANES  # sums in a row of a tile
BLOCK = 32  # positions whose keys lie together
STRETCH = 256  # positions whose scores are kept at once
QUERIES = 4  # the most that are worked on together
PIECE = 132  # tokens read in one pass: a multiple of the twelve that products work on together
SPARE = 4  # more tokens than there are, which the last tile of some may be worked out for

_NUMBERS = (
    "layers", "width", "heads", "kv_heads", "head_size", "hidden", "up_width", "vocabulary",
    "angles", "parallel",
    "activation",  # its place in ACTIVATIONS
    "padded",  # head_size, to whole tiles
    "positions",  # that there is room for in the cache
    "rows",  # that there is room for in the parts
)  # fmt: skip
# Below, t = new tokens, w = width, h = heads, g = heads with keys, d = head_size.
_SHARED = (
    "weights",  # (layers + 1, columns), the table of weights.py
    "windows",  # (layers,), how many positions a query sees, 0 for all
    "keys",  # (layers, g, blocks · d · 32), the cache
    "values",  # (layers, g, positions · padded)
    "cos",  # (positions, angles)
    "sin",
    "x",  # (t, w), the residual stream
    "normed",  # (t, w)
    "normed2",
    "added",  # (t, w), what is added to the stream
    "qkv",  # (t, (h + 2g) · d)
    "z",  # (t, h · d)
    "up",  # (t, hidden), or twice that with gates
    "bent",  # (t, hidden); the same as `up` without gates
    "logits",  # (1, vocabulary)
    # (part · t · h, padded), what each part of the cache has for a query, as `mixed` below
    "part_mixed",
    "part_largest",  # (part · t · h,)
    "part_sums",
)
_OWN = (
    "queries",  # (4, d), scaled
    "seen",  # (4, 2), the first position that each sees, and the one after the last
    "scores",  # (4, 256)
    # (4, padded), values by weights relative to the largest score, not yet divided by their sum
    "mixed",
    "largest",  # (4,)
    "sums",
    "panel",  # (inputs · 32,), rows of a matrix turned over
    "few",  # ((t + 4) · 32,), what comes of fewer rows than 32
)

ROOM = np.dtype(
    [
        *((name, np.int64) for name in _NUMBERS),
        *((f"{name}_at", np.uint64) for name in (*_SHARED, *_OWN)),
        ("eps", np.float32),
    ],
    align=True,
)
"""What compiled code knows of a model: its sizes, and the addresses of arrays."""


def aligned(shape: tuple[int, ...], kind: Any) -> Array:
    """Return zeros that begin at a line of the cache, so that no register is read from two."""
    kind, line = np.dtype(kind), LANES * 4
    size = math.prod(shape) * kind.itemsize
    data: Array = np.zeros(size + line, np.uint8)
    first = -data.ctypes.data % line
    data = data[first : first + size].view(kind)
    return data.reshape(shape)


class Room:
    """The arrays of one decoder, and a `ROOM` for each of its threads that says where they are.

    `parts` is the most parts that a text is gone through in.
    """

    def __init__(self, config: AnyConfig, threads: int, parts: int) -> None:
        self.rooms = np.zeros(threads, ROOM)
        self._arrays: dict[str, Array] = {}
        gated, size = config.has_gated_mlp, config.head_dim
        hidden = config.d_mlp
        self.padded = -(-size // WIDTH) * WIDTH
        self.tell(
            layers=config.n_layers,
            width=config.d_model,
            heads=config.n_heads,
            kv_heads=config.n_kv_heads,
            head_size=size,
            padded=self.padded,
            hidden=hidden,
            up_width=2 * hidden if gated else hidden,
            vocabulary=config.vocab_size,
            activation=ACTIVATIONS.index(config.activation),
            parallel=config.parallel_residual,
            eps=config.norm_eps,
            rows=parts * config.n_heads,
        )
        rows, width = parts * config.n_heads, config.d_model
        shared = {
            **dict.fromkeys(("x", "normed", "normed2", "added"), (PIECE, width)),
            "qkv": (PIECE, (config.n_heads + 2 * config.n_kv_heads) * size),
            "z": (PIECE, config.n_heads * size),
            "up": (PIECE, 2 * hidden if gated else hidden),
            "logits": (1, config.vocab_size),
            "part_mixed": (rows, self.padded),
            "part_largest": (rows,),
            "part_sums": (rows,),
        }
        for name, shape in shared.items():
            self.put(name, aligned(shape, np.float32))
        self.put("bent", aligned((PIECE, hidden), np.float32) if gated else self["up"])
        self.put("windows", np.array(config.sliding_windows or [0] * config.n_layers, np.int64))
        most = max(width, hidden, config.n_heads * size)  # inputs of a matrix
        own: dict[str, tuple[tuple[int, ...], Any]] = {
            "queries": ((QUERIES, size), np.float32),
            "seen": ((QUERIES, 2), np.int64),
            "scores": ((QUERIES, STRETCH), np.float32),
            "mixed": ((QUERIES, self.padded), np.float32),
            "largest": ((QUERIES,), np.float32),
            "sums": ((QUERIES,), np.float32),
            "panel": ((most * PANEL_ROWS,), np.float32),
            "few": (((PIECE + SPARE) * PANEL_ROWS,), np.float32),
        }
        for name, (shape, kind) in own.items():
            self.put(name, aligned((threads, *shape), kind), own=True)

    def tell(self, **numbers: float) -> None:
        """Note sizes, the same for all threads."""
        for name, number in numbers.items():
            self.rooms[name] = number

    def put(self, name: str, array: Array, *, own: bool = False) -> None:
        """Keep an array, note its address; of `own` ones, each thread has a part (threads, …)."""
        self._arrays[name] = array
        step = array.strides[0] if own and len(array) else 0
        self.rooms[f"{name}_at"] = array.ctypes.data + step * np.arange(
            len(self.rooms), dtype=np.uint64
        )

    def __getitem__(self, name: str) -> Array:
        """Return an array that is kept."""
        return self._arrays[name]
