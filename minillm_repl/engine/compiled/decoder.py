"""The compiled decoder of all families: prepares what compiled code reads, and keeps the cache."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.engine.compiled.attention import BLOCK, Pieces, scratch
from minillm_repl.engine.compiled.forward import PHASES_IN_A_LAYER, PHASES_OUTSIDE, Room, Shape, forward
from minillm_repl.engine.compiled.rotation import rotation
from minillm_repl.engine.compiled.team import Team, default_size
from minillm_repl.engine.compiled.tiles import WIDTH
from minillm_repl.engine.compiled.weights import lay_out
from minillm_repl.engine.decoder import piece_of
from minillm_repl.language import _, _n
from minillm_repl.model.config import ACTIVATIONS, AnyConfig, LlamaConfig

Floats = NDArray[np.float32]

_PIECE = 132  # tokens read in one pass: a multiple of the twelve that products work on together
_FIRST_ROOM = 128  # tokens
_PART = 256  # positions of a long text are the least that are worth a task of their own
_TASKS = 16  # of a long text, whatever the number of threads; in more, the first keys of each would take the time
# Parameters: below, a token takes a thread less time than waking another, and weights turned over stay in its cache.
_SMALL = 2_000_000


class CompiledDecoder:
    """Runs a model of any family on the CPU. The first use on a machine compiles for some seconds."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 0, bits: int = 0) -> None:
        config = checkpoint.config
        self._config = config
        small = config.parameters < _SMALL
        self._weights = lay_out(config, checkpoint.tensors, bits, turned=small)
        self._shape = _shape_of(config)
        self._windows = np.array(getattr(config, "windows", ()) or [0] * config.layers, np.int64)
        size = threads or (1 if small else default_size())
        self._team = Team(size, PHASES_OUTSIDE + PHASES_IN_A_LAYER * config.layers + 2)
        self._padded = -(-self._shape.head_size // WIDTH) * WIDTH
        self._cache_kind = np.float32 if checkpoint.dtype == "float32" and not bits else np.uint16
        self._most_parts = -(-_TASKS // config.kv_heads)
        self._room = _room(config, self._shape, self._padded, size, max(_PIECE, self._most_parts))
        self._keys = self._values = np.empty((0, 0, 0), self._cache_kind)
        self._positions = 0
        self._turn = rotation(config, 0)
        self.ids: list[int] = []
        self.context, self.piece = config.context, piece_of(config.parameters)
        self._bits, self._dtype, self._turned = bits, checkpoint.dtype, small
        self.prefill([0])  # compile, or fetch the compiled code, now and not at the first word
        self.rewind(0)

    @property
    def name(self) -> str:
        """What runs, on how many threads."""
        return _n("numba on cpu, {n} thread", "numba on cpu, {n} threads", self._team.size)

    @property
    def why(self) -> str:
        """What the weights are while it runs."""
        size = self._weights.nbytes / 2**20
        if self._bits == 8:
            return _(
                "compiled, weights in 8 bits (--quant int8), {size:,.1f} MiB beside those of the file",
                size=size,
            )
        if self._bits:
            return _(
                "compiled, weights of the layers in 4 bits, embedding and output in 8 (--quant int4), {size:,.1f} MiB"
                " beside those of the file",
                size=size,
            )
        if self._turned:
            return _("compiled, weights turned over in float32, {size:,.1f} MiB beside those of the file", size=size)
        return _("compiled, weights in {dtype}", dtype=self._dtype)

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return self._keys.nbytes + self._values.nbytes

    def prefill(self, ids: Sequence[int]) -> Floats:
        """Read tokens after those in the cache; return the logits after the last."""
        for first in range(0, len(ids), _PIECE):
            self._read(ids[first : first + _PIECE])
        logits: Floats = self._room.logits[0]
        return logits

    def decode(self, token: int) -> Floats:
        """Read one token; return the logits after it."""
        return self.prefill((token,))

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.ids[length:]

    def _read(self, ids: Sequence[int]) -> None:
        start, count = len(self.ids), len(ids)
        assert start + count <= self._config.context
        assert min(ids) >= 0 and max(ids) < self._config.vocab  # compiled code reads where they say
        if start + count > self._positions:
            self._grow(start + count)
        parts = min(self._most_parts, -(-(start + 1) // _PART)) if count == 1 else 1
        self._team.run(
            forward, np.array(ids, np.int64), start, parts, self._shape, self._windows,
            self._weights.addresses, self._weights.like, self._weights.like_outside, self._keys, self._values,
            *self._turn, self._room,
        )  # fmt: skip
        self.ids.extend(ids)

    def _grow(self, needed: int) -> None:
        """Make room for more positions; it doubles, so that a long text is copied a few times in all."""
        positions = max(needed, min(self._config.context, max(_FIRST_ROOM, 2 * self._positions)))
        positions = -(-positions // BLOCK) * BLOCK
        layers, heads, size = self._config.layers, self._shape.kv_heads, self._shape.head_size
        keys = np.zeros((layers, heads, positions * size), self._cache_kind)
        values = np.zeros((layers, heads, positions * self._padded), self._cache_kind)
        if self._positions:
            keys[:, :, : self._keys.shape[2]] = self._keys
            values[:, :, : self._values.shape[2]] = self._values
        self._keys, self._values, self._positions = keys, values, positions
        self._turn = rotation(self._config, positions)


def _shape_of(config: AnyConfig) -> Shape:
    return Shape(
        config.heads,
        config.kv_heads,
        config.head_size,
        ACTIVATIONS.index(config.activation),
        parallel=getattr(config, "parallel", False),
        eps=np.float32(config.norm_eps),
    )


def _room(config: AnyConfig, shape: Shape, padded: int, threads: int, pieces: int) -> Room:
    gated = isinstance(config, LlamaConfig)
    hidden = config.hidden if isinstance(config, LlamaConfig) else config.ff_width
    rows = pieces * shape.heads

    def floats(*sizes: int) -> Floats:
        return np.zeros(sizes, np.float32)

    up = floats(_PIECE, 2 * hidden if gated else hidden)
    return Room(
        x=floats(_PIECE, config.width),
        normed=floats(_PIECE, config.width),
        normed2=floats(_PIECE, config.width),
        added=floats(_PIECE, config.width),
        qkv=floats(_PIECE, (shape.heads + 2 * shape.kv_heads) * shape.head_size),
        z=floats(_PIECE, shape.heads * shape.head_size),
        up=up,
        hidden=floats(_PIECE, hidden) if gated else up,
        scratch=scratch(threads, shape.head_size, padded),
        pieces=Pieces(floats(rows, padded), floats(rows), floats(rows)),
        logits=floats(1, config.vocab),
    )
