"""Where everything lies that a pass works with: one structure for each thread, filled in here, read by compiled code.

It needs no numba, so that a process whose machine code is kept need not import it.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.model.config import ACTIVATIONS, AnyConfig, LlamaConfig

Array = NDArray[Any]

LANES = 16  # numbers that are worked on side by side
WIDTH = 2 * LANES  # sums in a row of a tile
PANEL = 32  # rows of a matrix that make one task
BLOCK = 32  # positions whose keys lie together
STRETCH = 256  # positions whose scores are kept at once
QUERIES = 4  # the most that are worked on together
GROUP = 32  # weights of a row that share a scale
FOUR = 4  # of them, for each of sixteen rows, are in a register
PIECE = 132  # tokens read in one pass: a multiple of the twelve that products work on together
SPARE = 4  # more tokens than there are, which the last tile of some may be worked out for

_NUMBERS = (
    "layers", "width", "heads", "kv_heads", "head_size", "padded", "hidden", "up_width", "vocabulary",
    "angles", "activation", "parallel", "positions", "rows", "groups",
)  # fmt: skip
_SHARED = (
    "weights", "windows", "keys", "values", "cos", "sin", "x", "normed", "normed2", "added", "qkv", "z", "up",
    "bent", "logits", "part_mixed", "part_largest", "part_sums",
)  # fmt: skip
_OWN = (
    "queries", "seen", "scores", "mixed", "largest", "sums", "panel", "few", "small", "scale", "less",
)  # fmt: skip

ROOM = np.dtype(
    [
        *((name, np.int64) for name in _NUMBERS),
        *((f"{name}_at", np.uint64) for name in (*_SHARED, *_OWN)),
        ("eps", np.float32),
    ],
    align=True,
)
"""What compiled code knows of a model: its sizes, and the addresses of arrays (forward.py has their shapes)."""


def aligned(shape: tuple[int, ...], kind: Any) -> Array:
    """Return zeros that begin where a line of the cache does, so that no register is read from two."""
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
        gated, size = isinstance(config, LlamaConfig), config.head_size
        hidden = config.hidden if isinstance(config, LlamaConfig) else config.ff_width
        self.padded = -(-size // WIDTH) * WIDTH
        self.tell(
            layers=config.layers, width=config.width, heads=config.heads, kv_heads=config.kv_heads, head_size=size,
            padded=self.padded, hidden=hidden, up_width=2 * hidden if gated else hidden, vocabulary=config.vocab,
            activation=ACTIVATIONS.index(config.activation), parallel=getattr(config, "parallel", False),
            eps=config.norm_eps,
        )  # fmt: skip
        for name in ("x", "normed", "normed2", "added"):
            self._floats(name, PIECE, config.width)
        self._floats("qkv", PIECE, (config.heads + 2 * config.kv_heads) * size)
        self._floats("z", PIECE, config.heads * size)
        up = self._floats("up", PIECE, 2 * hidden if gated else hidden)
        self.put("bent", aligned((PIECE, hidden), np.float32) if gated else up)
        self.logits = self._floats("logits", 1, config.vocab)
        rows = max(PIECE, parts) * config.heads
        self._floats("part_mixed", rows, self.padded)
        self._floats("part_largest", rows)
        self._floats("part_sums", rows)
        self.put("windows", np.array(getattr(config, "windows", ()) or [0] * config.layers, np.int64))
        most = max(config.width, hidden, config.heads * size)  # inputs of a matrix
        groups = -(-most // GROUP)
        self.tell(rows=rows, groups=groups)
        for name, shape in (
            ("queries", (QUERIES, size)), ("scores", (QUERIES, STRETCH)), ("mixed", (QUERIES, self.padded)),
            ("largest", (QUERIES,)), ("sums", (QUERIES,)), ("panel", (groups * GROUP * PANEL,)),
            ("few", ((PIECE + SPARE) * PANEL,)), ("scale", (PIECE * groups,)),
        ):  # fmt: skip
            self.put(name, aligned((threads, *shape), np.float32), own=True)
        self.put("seen", np.zeros((threads, QUERIES, 2), np.int64), own=True)
        self.put("small", aligned((threads, PIECE * groups * GROUP), np.int8), own=True)
        self.put("less", np.zeros((threads, PIECE * groups), np.int32), own=True)

    def tell(self, **numbers: float) -> None:
        """Note sizes, the same for all threads."""
        for name, number in numbers.items():
            self.rooms[name] = number

    def put(self, name: str, array: Array, *, own: bool = False) -> None:
        """Keep an array, and note its address; of `own` ones, each thread has a part (threads, …)."""
        self._arrays[name] = array
        step = array.strides[0] if own and len(array) else 0
        self.rooms[f"{name}_at"] = array.ctypes.data + step * np.arange(len(self.rooms), dtype=np.uint64)

    def __getitem__(self, name: str) -> Array:
        """Return an array that is kept."""
        return self._arrays[name]

    def _floats(self, name: str, *sizes: int) -> Array:
        self.put(name, aligned(sizes, np.float32))
        return self._arrays[name]
