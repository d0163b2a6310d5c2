"""The keys and values of the tokens a model has already read."""

import torch
from torch import Tensor

from minillm_repl.model.config import AnyConfig

_FIRST_ROOM = 128  # tokens


class KVCache:
    """Keys and values of every layer for one sequence.

    `length` tokens are in it; to forget the later ones, lower `length`. Room doubles when it runs out, so that a long
    text is copied a few times in all, and a short one takes little memory.
    """

    def __init__(self, config: AnyConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = (config.layers, 2, 1, config.kv_heads, 0, config.head_size)
        self._most = config.context
        self._kv = torch.empty(self._shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values, each (1, head, new, head_size); return all so far (1, head, all, head_size)."""
        end = self.length + key.shape[-2]
        if end > self._kv.shape[-2]:
            self._grow(end)
        self._kv[layer, 0, :, :, self.length : end] = key
        self._kv[layer, 1, :, :, self.length : end] = value
        return self._kv[layer, 0, :, :, :end], self._kv[layer, 1, :, :, :end]

    def _grow(self, needed: int) -> None:
        room = max(needed, min(self._most, max(_FIRST_ROOM, 2 * self._kv.shape[-2])))
        larger = self._kv.new_empty((*self._shape[:4], room, self._shape[5]))
        larger[..., : self.length, :] = self._kv[..., : self.length, :]
        self._kv = larger

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._kv.nbytes
