"""The compiled decoder of all families: prepares what compiled code reads, and keeps the cache."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.generate.backends.compiled.machine_code import machine_code
from minillm_repl.generate.backends.compiled.room import BLOCK, PIECE, Room, aligned
from minillm_repl.generate.backends.compiled.rotation import rotation
from minillm_repl.generate.backends.compiled.team import Team, default_size
from minillm_repl.generate.backends.compiled.weights import lay_out, quantised
from minillm_repl.generate.decoder import choose_prefill_chunk
from minillm_repl.language import _, _n

if TYPE_CHECKING:  # torch is imported for who looks inside
    from minillm_repl.model.build import LanguageModel

Floats = NDArray[np.float32]

_PHASES_OUTSIDE, _PHASES_IN_A_LAYER = 3, 10  # of a pass (forward.py), at most
_FIRST_ROOM = 128  # tokens
_PART = 256  # positions of a long text are the least that are worth a task of their own
# of a long text, whatever the number of threads; in more, the first keys of each would take the
# time
_TASKS = 16
# Parameters: below, a token takes a thread less time than waking another, and weights turned over
# stay in its cache.
_SMALL = 2_000_000


class CompiledDecoder:
    """Runs a model of any family on the CPU.

    The first use on a machine compiles for some seconds.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int = 0, bits: int = 0) -> None:
        config = checkpoint.config
        self._config = config
        small = config.n_params < _SMALL
        # what it computes with
        self.tensors = quantised(checkpoint.tensors, bits) if bits else checkpoint.tensors
        self._weights = lay_out(config, self.tensors, bits, turned=small)
        size = threads or (1 if small else default_size())
        self._team = Team(size, _PHASES_OUTSIDE + _PHASES_IN_A_LAYER * config.n_layers)
        self._most_parts = -(-_TASKS // config.n_kv_heads)
        self._room = Room(config, size, self._most_parts)
        self._room.put("weights", self._weights.addresses)
        self._code = machine_code(self._weights.kind, self._weights.outside)
        self._new = np.zeros(PIECE, np.int64)
        self._new_at, self._rooms_at = self._new.ctypes.data, self._room.rooms.ctypes.data
        self._positions = 0
        self.ids: list[int] = []
        self.bos_token_id: int | None = None
        self.context_length, self.prefill_chunk = (
            config.context_length,
            choose_prefill_chunk(config.n_params),
        )
        self._bits, self._dtype, self._turned = bits, checkpoint.dtype, small

    @cached_property
    def model(self) -> "LanguageModel":
        """The model in torch, around the same weights."""
        from minillm_repl.model.build import build

        return build(self._config, self.tensors)

    @property
    def name(self) -> str:
        """What runs, on how many threads."""
        return _n("numba on cpu, {n} thread", "numba on cpu, {n} threads", self._team.size)

    @property
    def backend_details(self) -> str:
        """What the weights are while it runs."""
        size = self._weights.nbytes / 2**20
        if self._bits == 8:
            return _(
                "compiled; weights as int8 (--quant int8), +{size:,.1f} MiB",
                size=size,
            )
        if self._bits:
            return _(
                "compiled; layer weights as int4, embedding and output as int8 (--quant "
                "int4, large quality loss), +{size:,.1f} MiB",
                size=size,
            )
        if self._turned:
            return _(
                "compiled; weights repacked as float32, +{size:,.1f} MiB",
                size=size,
            )
        return _("compiled; weights in {dtype}", dtype=self._dtype)

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return sum(self._room[name].nbytes for name in self._cache(0)) if self._positions else 0

    @property
    def max_cache_bytes(self) -> int:
        """Memory that keys and values take when the context is full."""
        return sum(
            4 * math.prod(shape) for shape in self._cache(_in_blocks(self.context_length)).values()
        )

    def _cache(self, positions: int) -> dict[str, tuple[int, int, int]]:
        """Return the shapes of the arrays that keep keys and values of so many positions."""
        layers, heads = self._config.n_layers, self._config.n_kv_heads
        sizes = {"keys": self._config.head_dim, "values": self._room.padded}
        return {name: (layers, heads, positions * size) for name, size in sizes.items()}

    def prefill(self, ids: Sequence[int]) -> Floats:
        """Read tokens after those in the cache; return the logits after the last."""
        for first in range(0, len(ids), PIECE):
            self._read(ids[first : first + PIECE])
        logits: Floats = self._room["logits"][0]
        return logits

    def decode(self, token: int) -> Floats:
        """Read one token; return the logits after it."""
        return self.prefill((token,))

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.ids[length:]

    def _read(self, ids: Sequence[int]) -> None:
        start, count = len(self.ids), len(ids)
        assert start + count <= self._config.context_length
        assert (
            min(ids) >= 0 and max(ids) < self._config.vocab_size
        )  # compiled code reads where they say
        if start + count > self._positions:
            self._grow(start + count)
        parts = min(self._most_parts, -(-(start + 1) // _PART)) if count == 1 else 1
        self._new[:count] = ids
        self._team.run(self._code, self._new_at, count, start, parts, self._rooms_at)
        self.ids.extend(ids)

    def _grow(self, needed: int) -> None:
        """Make room for more positions; it doubles, so that a text is copied a few times."""
        positions = _in_blocks(
            max(needed, min(self.context_length, max(_FIRST_ROOM, 2 * self._positions)))
        )
        for name, shape in self._cache(positions).items():
            longer = aligned(shape, np.float32)
            if self._positions:
                before = self._room[name]
                longer[:, :, : before.shape[2]] = before
            self._room.put(name, longer)
        self._positions = positions
        cos, sin = rotation(self._config, positions)
        self._room.put("cos", cos)
        self._room.put("sin", sin)
        self._room.tell(positions=positions, angles=cos.shape[1])


def _in_blocks(positions: int) -> int:
    return -(-positions // BLOCK) * BLOCK
