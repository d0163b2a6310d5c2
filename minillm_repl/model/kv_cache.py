"""The keys and values of the tokens that a model has read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minillm_repl.model.config import AnyConfig

_CAPACITY_STEP = 128  # tokens; the capacity of a short text is a multiple of this


class KVCache:
    """Keys and values of every layer for one sequence, in float32.

    `length` tokens are in it; a lower `length` forgets the later ones. The capacity doubles when it
    is used up: a long text is copied a few times in all, and a short one takes little memory.
    """

    def __init__(self, config: AnyConfig, device: torch.device) -> None:
        # (layers, 2, b = 1, g, capacity, d)
        self._shape = (config.n_layers, 2, 1, config.n_kv_heads, 0, config.head_dim)
        self.max_length = config.context_length  # tokens; doubling stops here
        self._sliding_windows = config.sliding_windows or (0,)
        self._kv = torch.empty(self._shape, device=device)
        self._static_position: Tensor | None = None
        self._masks: dict[int, Tensor] = {}
        self.length = 0

    @property
    def capacity(self) -> int:
        """The tokens that it can hold before it must move keys and values."""
        return self._kv.shape[-2]

    def positions(self, n_new: int) -> Tensor:
        """Return the positions of the next tokens: (new,)."""
        if self._static_position is not None:
            return self._static_position
        return torch.arange(self.length, self.length + n_new, device=self._kv.device)

    def mask(self, sliding_window: int) -> Tensor | None:
        """Return 0 where the next token sees what `update` returns, −∞ elsewhere: (capacity,).

        None if it sees all.
        """
        return self._masks.get(sliding_window)

    @contextmanager
    def static(self, position: Tensor) -> Iterator[None]:
        """Take the next token to be at `position` (1,), a number on the device, not at `length`.

        `update` then returns the whole capacity, so that each token is the same work on the same
        memory, as a CUDA graph needs it.
        """
        positions = torch.arange(self.capacity, device=position.device)
        for sliding_window in set(self._sliding_windows):
            visible = (positions <= position) & (
                positions > position - (sliding_window or self.capacity)
            )
            self._masks[sliding_window] = torch.where(visible, 0.0, -torch.inf).to(self._kv.dtype)
        self._static_position = position
        try:
            yield
        finally:
            self._static_position, self._masks = None, {}

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (1, g, new, d); return those of all tokens: (1, g, all, d)."""
        if self._static_position is not None:
            self._kv[layer, 0].index_copy_(-2, self._static_position, key)
            self._kv[layer, 1].index_copy_(-2, self._static_position, value)
            return self._kv[layer, 0], self._kv[layer, 1]
        end = self.length + key.shape[-2]
        self.reserve(end)
        self._kv[layer, 0, :, :, self.length : end] = key
        self._kv[layer, 1, :, :, self.length : end] = value
        return self._kv[layer, 0, :, :, :end], self._kv[layer, 1, :, :, :end]

    def reserve(self, needed: int) -> None:
        """Make the capacity at least `needed` tokens."""
        if needed <= self.capacity:
            return
        capacity = max(
            needed, min(self.max_length, max(2 * self.capacity, needed + -needed % _CAPACITY_STEP))
        )
        # Zeros, not empty memory: even a masked NaN would make the sum NaN.
        larger = self._kv.new_zeros((*self._shape[:4], capacity, self._shape[5]))
        larger[..., : self.length, :] = self._kv[..., : self.length, :]
        self._kv = larger

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self._kv.nbytes

    @property
    def max_nbytes(self) -> int:
        """Bytes that it takes when the context is full."""
        return (
            self._kv.element_size() * self.max_length * math.prod(self._shape[:4]) * self._shape[5]
        )
