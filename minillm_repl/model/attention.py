"""The part of attention that all families share: masks, attention weights, the sum of values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right


def attend(
    q: Tensor, k: Tensor, v: Tensor, sliding_window: int = 0, mask: Tensor | None = None
) -> Tensor:
    """Return the values that each query attends to, weighted: (b, h, new, d), the shape of `q`.

    `k` and `v` are (b, g, seen, d); the queries are those of the last of these positions, and each
    key serves h / g queries. With `sliding_window`, a position sees only that many, itself
    included. With one query, `mask` (seen,) is 0 where it sees and −∞ where not, instead.
    """
    if mask is not None:
        return (_attention_probs(q, k, mask) @ v.flatten(0, 1)).view(q.shape)
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
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=is_grouped
    )


def attention_weights(q: Tensor, k: Tensor, sliding_window: int = 0) -> Tensor:
    """Return the weights of `attend`: (b, h, new, seen), each row a softmax that sums to 1.

    softmax(q·k / √d), over the positions that the query sees.
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    visible = _causal_mask(n_queries, n_keys, sliding_window or n_keys, q.device)
    mask = torch.zeros(n_queries, n_keys, dtype=q.dtype, device=q.device).masked_fill(
        ~visible, -torch.inf
    )
    return _attention_probs(q, k, mask.repeat(q.shape[1] // k.shape[1], 1)).view(
        *q.shape[:-1], n_keys
    )


def _attention_probs(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return softmax(q·k / √d + mask): (b*g, h/g*new, seen), the queries of a key below each other.

    `mask` has any shape that broadcasts to that.
    """
    grouped = q.reshape(k.shape[0] * k.shape[1], -1, q.shape[-1])  # (b*g, h/g*new, d)
    keys = k.flatten(0, 1).mT  # (b*g, d, seen)
    return torch.baddbmm(mask, grouped, keys, alpha=q.shape[-1] ** -0.5).softmax(-1)


def _causal_mask(n_queries: int, n_keys: int, sliding_window: int, device: torch.device) -> Tensor:
    """Return True where a query may attend to a key: (new, seen)."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(n_keys - n_queries).triu(n_keys - n_queries - sliding_window + 1)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}
