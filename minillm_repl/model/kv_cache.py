"""The keys and values of the tokens a model has already read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minillm_repl.model.config import AnyConfig

_CAPACITY_STEP = 128  # tokens: there is room for a multiple of so many


class KVCache:
    """Keys and values of every layer for one sequence, in float32.

    `length` tokens are in it; to forget the later ones, lower `length`. Room doubles when it runs
    out, so that a long text is copied a few times in all, and a short one takes little memory.
    """

    def __init__(self, config: AnyConfig, device: torch.device) -> None:
        self._shape = (config.n_layers, 2, 1, config.n_kv_heads, 0, config.head_dim)
        self.max_length = (
            config.context_length
        )  # tokens: there is never room for more, unless more are put in
        self._sliding_windows = config.sliding_windows or (0,)
        self._kv = torch.empty(self._shape, device=device)
        self._static_position: Tensor | None = None
        self._masks: dict[int, Tensor] = {}
        self.length = 0

    @property
    def capacity(self) -> int:
        """How many tokens it can hold without keys and values being moved."""
        return self._kv.shape[-2]

    def positions(self, n_new: int) -> Tensor:
        """Return where the next tokens stand: (new,)."""
        if self._static_position is not None:
            return self._static_position
        return torch.arange(self.length, self.length + n_new, device=self._kv.device)

    def mask(self, sliding_window: int) -> Tensor | None:
        """Return 0 for places of `extend` that the next token sees, −∞ for others; None if all
        are its past.
        """
        return self._masks.get(sliding_window)

    @contextmanager
    def static(self, position: Tensor) -> Iterator[None]:
        """Take the next token to be at `place` (1,), a number on the device, not at `length`.

        `extend` then returns all places, filled or not, so that each token is the same work on the
        same memory.
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
        """Store keys and values (1, head, new, head_size); return all (1, head, all, head_size)."""
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
        """Have room for so many tokens in all."""
        if needed <= self.capacity:
            return
        capacity = max(
            needed, min(self.max_length, max(2 * self.capacity, needed + -needed % _CAPACITY_STEP))
        )
        # not empty: nothing times NaN is NaN
        larger = self._kv.new_zeros((*self._shape[:4], capacity, self._shape[5]))
        larger[..., : self.length, :] = self._kv[..., : self.length, :]
        self._kv = larger

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._kv.nbytes

    @property
    def max_nbytes(self) -> int:
        """Memory that it takes with all the tokens that there can be room for."""
        return (
            self._kv.element_size() * self.max_length * math.prod(self._shape[:4]) * self._shape[5]
        )
