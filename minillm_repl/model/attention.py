"""Attention, as all families share it: masks, weights, the sum of values, and the KV cache."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from minillm_repl.model.config import CANON_TOKENS, AnyConfig
from minillm_repl.model.hooks import Hook, wants_pattern


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: AnyConfig,
    sliding_window: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the values that each query attends to, weighted: (b, h, new, d), the shape of `q`.

    `k` and `v` are (b, g, seen, d); the queries are those of the last of these positions, and each
    key serves h / g queries. With `sliding_window`, a position sees only that many, itself
    included. With one query, `mask` (seen,) is 0 where it sees and −∞ where not, instead.
    """
    if mask is not None:
        return (_attention_probs(q, k, mask, config) @ v.flatten(0, 1)).view(q.shape)
    if config.attention_softcap:  # which no fused attention knows
        weights = attention_weights(q, k, config, sliding_window)  # (b, h, new, seen)
        return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    sees_all = not sliding_window or n_keys <= sliding_window
    is_causal = sees_all and n_queries == n_keys
    is_grouped = q.shape[1] != k.shape[1]
    if sees_all and 1 < n_queries < n_keys and q.is_cuda:
        # Flash attention knows this mask, and needs no matrix for it.
        mask = causal_lower_right(n_queries, n_keys)
    elif not is_causal and not (sees_all and n_queries == 1):
        mask = _causal_mask(n_queries, n_keys, sliding_window or n_keys, q.device)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=is_causal,
        scale=config.attention_scale,
        enable_gqa=is_grouped,
    )


def attend_hooked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: AnyConfig,
    sliding_window: int = 0,
    mask: Tensor | None = None,
    *,
    hook: Hook,
    name: str,
) -> Tensor:
    """Return what `attend` returns, with the weights that `hook` makes of the model's own.

    `name` is that of the weights. A hook that changes no weight changes no bit of the result.
    """
    z = attend(q, k, v, config, sliding_window, mask)  # (b, h, new, d)
    if not wants_pattern(hook, name):
        return z
    pattern = attention_weights(q, k, config, sliding_window)  # (b, h, new, seen)
    replaced = hook(name, pattern)
    if replaced is pattern:
        return z
    # The difference alone is added: heads whose weights stay keep every bit.
    return z + (replaced - pattern) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def attention_weights(q: Tensor, k: Tensor, config: AnyConfig, sliding_window: int = 0) -> Tensor:
    """Return the weights of `attend`: (b, h, new, seen), each row a softmax that sums to 1.

    softmax(q·k / √d), over the positions that the query sees; some models scale by another number,
    or cap the scores.
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    visible = _causal_mask(n_queries, n_keys, sliding_window or n_keys, q.device)
    mask = torch.zeros(n_queries, n_keys, dtype=q.dtype, device=q.device).masked_fill(
        ~visible, -torch.inf
    )
    mask = mask.repeat(q.shape[1] // k.shape[1], 1)
    return _attention_probs(q, k, mask, config).view(*q.shape[:-1], n_keys)


def _attention_probs(q: Tensor, k: Tensor, mask: Tensor, config: AnyConfig) -> Tensor:
    """Return softmax(q·k / √d + mask): (b*g, h/g*new, seen), the queries of a key below each other.

    `mask` has any shape that broadcasts to that.
    """
    # The queries that share a key become rows of one matrix, so that one product serves them all.
    grouped = q.reshape(k.shape[0] * k.shape[1], -1, q.shape[-1])  # (b*g, h/g*new, d)
    keys = k.flatten(0, 1).mT  # (b*g, d, seen)
    if config.attention_softcap:
        scores = softcap(grouped @ keys * config.attention_scale, config.attention_softcap)
        return (scores + mask).softmax(-1)
    # mask + q·kᵀ / √d in one operation: the unscaled products are never stored.
    return torch.baddbmm(mask, grouped, keys, alpha=config.attention_scale).softmax(-1)


def softcap(x: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(x / cap): numbers far below the cap stay, none goes above it."""
    return cap * torch.tanh(x / cap)


def _causal_mask(n_queries: int, n_keys: int, sliding_window: int, device: torch.device) -> Tensor:
    """Return True where a query may attend to a key: (new, seen)."""
    # Query i of `n_queries` has the position n_keys - n_queries + i.
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(n_keys - n_queries).triu(n_keys - n_queries - sliding_window + 1)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


# -- the keys and values of the tokens that a model has read

_CAPACITY_STEP = 128  # tokens; the capacity of a short text is a multiple of this


class KVCache:
    """Keys and values of every layer for one sequence, in float32; and what convolutions read.

    `length` tokens are in it; a lower `length` forgets the later ones. The capacity doubles when it
    is used up: a long text is copied a few times in all, and a short one takes little memory.
    """

    def __init__(self, config: AnyConfig, device: torch.device) -> None:
        # (layers, keys and values, b = 1, g, capacity, d)
        self._shape = (config.n_layers, 2, 1, config.n_kv_heads, 0, config.head_dim)
        self.max_length = config.context_length  # tokens; doubling stops here
        self._sliding_windows = config.sliding_windows or (0,)
        self._kv = torch.empty(self._shape, device=device)
        # The inputs of Canon layers and of short convolutions, which stand where attention would,
        # after the zeros that stand before a text. All are kept, for
        # `length` can become any lower one. (layers, attention and MLP, b = 1, 3 + capacity, w)
        is_mixed = config.has_canon_layers or len(config.attention_layers) < config.n_layers
        n_canon = config.n_layers if is_mixed else 0
        self._canon = torch.zeros((n_canon, 2, 1, CANON_TOKENS - 1, config.d_model), device=device)
        self._static_position: Tensor | None = None  # (1,); None: the position is `length`
        self._masks: dict[int, Tensor] = {}  # in static mode, by the width of the window
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

    def recent(self, name: str, x: Tensor) -> Tensor:
        """Store the inputs x (1, new, w) of a convolution; return the three before them as well.

        `name` is that of the part that reads its result: `blocks.0.attention`, `blocks.0.mlp`.
        """
        _blocks, layer, part = name.split(".")
        place = int(layer), int(part == "mlp")
        if self._static_position is not None:
            window = self._static_position + torch.arange(CANON_TOKENS, device=x.device)  # (4,)
            self._canon[place].index_copy_(1, window[-1:], x)
            return self._canon[place].index_select(1, window)
        end = self.length + x.shape[1]
        self.reserve(end)
        inputs = self._canon[place]  # (1, 3 + capacity, w)
        past = CANON_TOKENS - 1
        inputs[:, past + self.length : past + end] = x
        return inputs[:, self.length : past + end]

    def reserve(self, needed: int) -> None:
        """Make the capacity at least `needed` tokens."""
        if needed <= self.capacity:
            return
        # Doubled, or the next multiple of the step; never above the context unless it is needed.
        capacity = max(
            needed, min(self.max_length, max(2 * self.capacity, needed + -needed % _CAPACITY_STEP))
        )
        # Zeros, not empty memory: even a masked NaN would make the sum NaN.
        larger = self._kv.new_zeros((*self._shape[:4], capacity, self._shape[5]))
        larger[..., : self.length, :] = self._kv[..., : self.length, :]
        self._kv = larger
        past = CANON_TOKENS - 1
        shape = (*self._canon.shape[:3], past + capacity, self._canon.shape[4])
        inputs = self._canon.new_zeros(shape)
        inputs[..., : past + self.length, :] = self._canon[..., : past + self.length, :]
        self._canon = inputs

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self._kv.nbytes + self._canon.nbytes

    @property
    def max_nbytes(self) -> int:
        """Bytes that it takes when the context is full."""
        canon = math.prod(self._canon.shape[:3]) * self._canon.shape[4]
        per_token = math.prod(self._shape[:4]) * self._shape[5] + canon  # numbers
        return self._kv.element_size() * self.max_length * per_token
