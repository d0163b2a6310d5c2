"""The keys and values of the tokens a model has already read."""

import torch
from torch import Tensor

from minillm_repl.model.config import GPTConfig


class KVCache:
    """Keys and values of every layer for one sequence, with room for the whole context.

    `length` tokens are in it; to forget the later ones, lower `length`.
    """

    def __init__(self, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, 2, 1, config.heads, config.context, config.head_size)
        self._kv = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values, each (1, head, new, head_size); return all so far (1, head, all, head_size)."""
        end = self.length + key.shape[-2]
        self._kv[layer, 0, :, :, self.length : end] = key
        self._kv[layer, 1, :, :, self.length : end] = value
        return self._kv[layer, 0, :, :, :end], self._kv[layer, 1, :, :, :end]
