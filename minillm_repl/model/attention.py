"""The part of attention that all families share: who sees whom, and the mixing of values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right


def attend(q: Tensor, k: Tensor, v: Tensor, window: int = 0, mask: Tensor | None = None) -> Tensor:
    """Let each query mix the values of the positions up to its own: (batch, head, new, head_size),
    same shape out.

    `k` and `v` are (batch, kv_head, seen, head_size), the queries being the last of the seen
    positions; each key serves head / kv_head queries. With a window, a position sees only the last
    `window`, itself included. With one query, `mask` (seen,) may say instead what it sees: 0, or −∞
    for what it does not.
    """
    if mask is not None:
        return (_weights(q, k, mask) @ v.flatten(0, 1)).view(q.shape)
    new, seen = q.shape[-2], k.shape[-2]
    whole = not window or seen <= window
    causal = whole and new == seen
    grouped = q.shape[1] != k.shape[1]
    if whole and 1 < new < seen and q.is_cuda:
        # flash attention knows this one, and needs no matrix for it
        mask = causal_lower_right(new, seen)
    elif not causal and not (whole and new == 1):
        mask = _visible(new, seen, window or seen, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def attention_weights(q: Tensor, k: Tensor, window: int = 0) -> Tensor:
    """Return how much each query takes of each position when `attend` mixes them: (batch, head,
    new, seen).

    softmax(q·k / √head_size), over the positions that the query sees; a row sums to 1.
    """
    new, seen = q.shape[-2], k.shape[-2]
    visible = _visible(new, seen, window or seen, q.device)
    mask = torch.zeros(new, seen, dtype=q.dtype, device=q.device).masked_fill(~visible, -torch.inf)
    return _weights(q, k, mask.repeat(q.shape[1] // k.shape[1], 1)).view(*q.shape[:-1], seen)


def _weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return softmax(q·k / √head_size + mask), the queries that share a key one below the other.

    (batch · kv_head, head / kv_head · new, seen); `mask` may be any shape that fits that.
    """
    rows = q.reshape(k.shape[0] * k.shape[1], -1, q.shape[-1])
    return torch.baddbmm(mask, rows, k.flatten(0, 1).mT, alpha=q.shape[-1] ** -0.5).softmax(-1)


def _visible(new: int, seen: int, window: int, device: torch.device) -> Tensor:
    """Return which positions (seen) each of the new ones sees: (new, seen)."""
    every = torch.ones(new, seen, dtype=torch.bool, device=device)
    return every.tril(seen - new).triu(seen - new - window + 1)


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}
