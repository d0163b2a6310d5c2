"""The decoder for the CPU: the C library of minillm_repl/kernels, and the KV cache in it."""

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.generate import choose_prefill_chunk
from minillm_repl.generate.backends.kernel_model import lay_out, quantise_tensors, rotary_angles
from minillm_repl.generate.scoring import score
from minillm_repl.kernels.library import Library
from minillm_repl.kernels.structs import KEY_BLOCK, MAX_TOKENS, declare
from minillm_repl.language import _, _n

if TYPE_CHECKING:  # A chat needs no torch.
    from minillm_repl.model.build import LanguageModel

Floats = NDArray[np.float32]

_FIRST_CAPACITY = 128  # tokens
# Parameters: below, a token takes a thread less time than waking another, and transposed weights
# stay in its cache.
_SMALL = 2_000_000


class KernelDecoder:
    """Runs a model of any family on the CPU, by a loaded library."""

    def __init__(
        self, checkpoint: Checkpoint, library: Library, threads: int = 0, bits: int = 0
    ) -> None:
        assert library.functions is not None
        config = checkpoint.config
        self._config, self._functions = config, declare(library.functions)
        self._variant, self._reason = library.variant, library.reason
        self._small = config.n_params < _SMALL and not bits
        self._threads = threads or (1 if config.n_params < _SMALL else default_threads())
        # what it computes with
        self.tensors = (
            quantise_tensors(checkpoint.tensors, bits, self._threads)
            if bits
            else checkpoint.tensors
        )
        panel_rows = self._functions.minillm_panel_rows() if self._small else 0
        self._weights = lay_out(config, self.tensors, threads=self._threads, panel_rows=panel_rows)
        self._context = self._start()
        self._ids = np.zeros(MAX_TOKENS, np.int32)
        # It is Python's own, so that it outlives the decoder where somebody keeps it.
        self._logits = np.zeros(config.vocab_size, np.float32)
        self._capacity = 0  # tokens that the cache has room for
        self._angles: tuple[Floats, ...] = ()
        self.ids: list[int] = []
        self.bos_token_id: int | None = None
        self.context_length, self.vocab_size = config.context_length, config.vocab_size
        self.prefill_chunk = choose_prefill_chunk(config.n_params)
        self._bits, self._dtype = bits, checkpoint.dtype

    def _start(self) -> int:
        """Return the address of the C library's context, with a thread for each of its others."""
        functions, model = self._functions, ctypes.byref(self._weights.model)
        wrong = functions.minillm_check(model)
        if wrong:
            raise RuntimeError(wrong.decode())  # which sizes do not fit together
        context: int | None = functions.minillm_new(model)
        if context is None:
            raise MemoryError
        others = [
            threading.Thread(target=functions.minillm_work, args=(context, i), daemon=True)
            for i in range(1, self._threads)
        ]
        for other in others:
            other.start()
        weakref.finalize(self, _stop, functions, context, others)
        return context

    @cached_property
    def model(self) -> "LanguageModel":
        """The model in torch, around the same weights."""
        from minillm_repl.model.build import build

        return build(self._config, self.tensors)

    @property
    def name(self) -> str:
        """What runs, on how many threads."""
        return _n(
            "C kernels ({variant}) on cpu, {n} thread",
            "C kernels ({variant}) on cpu, {n} threads",
            self._threads,
            variant=self._variant,
        )

    @property
    def backend_details(self) -> str:
        """Why this variant runs, and what the weights are while it does."""
        return f"{self._reason}; {self._describe_weights()}"

    def _describe_weights(self) -> str:
        size = self._weights.nbytes / 2**20
        if self._bits == 8:
            return _("weights as int8 (--quant int8), +{size:,.1f} MiB", size=size)
        if self._bits:
            return _(
                "layer weights as int4, embedding and output as int8 (--quant "
                "int4, large quality loss), +{size:,.1f} MiB",
                size=size,
            )
        if self._small:
            return _("weights repacked as float32, +{size:,.1f} MiB", size=size)
        return _("weights in {dtype}", dtype=self._dtype)

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return self._bytes_of(self._capacity)

    @property
    def max_cache_bytes(self) -> int:
        """Memory that keys and values take when the context is full."""
        return self._bytes_of(self.context_length)

    def _bytes_of(self, positions: int) -> int:
        return int(self._functions.minillm_cache_bytes(self._context, positions))

    def prefill(self, ids: Sequence[int]) -> Floats:
        """Read tokens after those in the cache; return the logits after the last."""
        for first in range(0, len(ids), MAX_TOKENS):
            self._read(ids[first : first + MAX_TOKENS], self._logits)
        return self._logits

    def prefill_all(self, ids: Sequence[int]) -> Floats:
        """Read tokens after those in the cache; return the logits (len(ids), vocab_size)."""
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        for first in range(0, len(ids), MAX_TOKENS):
            chunk = slice(first, first + MAX_TOKENS)
            self._read(ids[chunk], logits[chunk])
        return logits

    def decode(self, token: int) -> Floats:
        """Read one token; return the logits after it."""
        self._read((token,), self._logits)
        return self._logits

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.ids[length:]

    score = score

    def _read(self, ids: Sequence[int], logits: Floats) -> None:
        """Read at most MAX_TOKENS tokens; fill the logits after each (time, vocab), or after the
        last one (vocab,).
        """
        start, count = len(self.ids), len(ids)
        wanted = logits.size // self.vocab_size
        assert start + count <= self._config.context_length
        if start + count > self._capacity:
            self._grow(start + count)
        # Checked before a thread that is late can read them.
        if min(ids) < 0 or max(ids) >= self._config.vocab_size:
            raise IndexError(ids)
        self._ids[:count] = ids
        failed = self._functions.minillm_forward(
            self._context, self._ids.ctypes.data, count, start, wanted, logits.ctypes.data
        )
        if failed:
            raise IndexError(ids)
        self.ids.extend(ids)

    def _grow(self, needed: int) -> None:
        """Make room for more positions; it doubles, so that a text is copied a few times."""
        wanted = min(self.context_length, max(_FIRST_CAPACITY, 2 * self._capacity))
        capacity = _in_blocks(max(needed, wanted))
        cos, sin = angles = rotary_angles(self._config, capacity)
        failed = self._functions.minillm_reserve(
            self._context, capacity, cos.ctypes.data, sin.ctypes.data, cos.shape[2]
        )
        if failed:
            raise MemoryError
        self._capacity, self._angles = capacity, angles


def default_threads() -> int:
    """Return how many threads to decode with: memory limits, which two to four cores use up."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # above, half are often the same cores seen twice
    return cores if cores <= 4 else min(8, cores // 2)


def _stop(functions: ctypes.CDLL, context: int, threads: list[threading.Thread]) -> None:
    """Let the other threads return, and free the memory that they work in."""
    functions.minillm_stop(context)
    for thread in threads:
        thread.join()
    functions.minillm_free(context)


def _in_blocks(positions: int) -> int:
    return -(-positions // KEY_BLOCK) * KEY_BLOCK
