"""The part of attention that all families share: who sees whom, and the mixing of values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """Let each query mix the values of the positions up to its own: (batch, head, new, head_size), same shape out.

    `k` and `v` are (batch, kv_head, seen, head_size), the queries being the last of the seen positions; each key
    serves head / kv_head queries. With a window, a position sees only the last `window`, itself included.
    """
    new, seen = q.shape[-2], k.shape[-2]
    whole = not window or seen <= window
    causal = whole and new == seen
    mask = None if causal or (whole and new == 1) else _visible(new, seen, window or seen, q.device)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def attention_weights(q: Tensor, k: Tensor, window: int = 0) -> Tensor:
    """Return how much each query takes of each position when `attend` mixes them: (batch, head, new, seen).

    softmax(q·k / √head_size), over the positions that the query sees; a row sums to 1.
    """
    new, seen = q.shape[-2], k.shape[-2]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (b, g, seen, d) -> (b, h, seen, d)
    scores: Tensor = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.masked_fill(~_visible(new, seen, window or seen, q.device), float("-inf")).softmax(-1)


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
