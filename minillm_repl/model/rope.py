"""Rotary position embedding (RoPE): queries and keys are rotated by their positions, so that their
dot product depends on the distance alone.

The order of operations in float32 is that of the `transformers` library, so that far positions
agree with it too.
"""

import math

import torch
from torch import Tensor

from minillm_repl.model.config_base import Rope

CosSin = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of each position, each (t, rotary_dim)."""


def _inv_freq(rope: Rope, head_dim: int, device: torch.device) -> Tensor:
    """Return the angle of each pair per position, in radians: (rotary_dim / 2,)."""
    rotary_dim = int(head_dim * rope.rotary_pct)
    evens = torch.arange(0, rotary_dim, 2, dtype=torch.int64, device=device)
    inv_freq = 1.0 / (rope.theta ** (evens.float() / rotary_dim))  # (rotary_dim / 2,)
    if rope.scaling == "linear":
        return inv_freq / rope.factor
    if rope.scaling == "llama3":
        # Full rotations within the context that the model was first trained with.
        rotations = rope.original_max_position_embeddings / (2 * math.pi / inv_freq)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        smooth = ((rotations - low) / (high - low)).clamp(0, 1)  # 1: fast enough to stay
        return (1 - smooth) * inv_freq / rope.factor + smooth * inv_freq
    if rope.scaling == "longrope":
        return inv_freq / torch.tensor(rope.short_factors, device=device)
    if rope.scaling == "yarn":
        first, last = rope.yarn_range(rotary_dim)
        pairs = torch.arange(rotary_dim // 2, dtype=torch.float32, device=device)
        slowed = ((pairs - first) / (last - first)).clamp(0, 1)  # 0: fast enough to stay
        return slowed * inv_freq / rope.factor + (1 - slowed) * inv_freq
    return inv_freq


def compute_cos_sin(rope: Rope, head_dim: int, positions: Tensor, dtype: torch.dtype) -> CosSin:
    """Return the rotation of each of the positions (t,)."""
    inv_freq = _inv_freq(rope, head_dim, positions.device)
    angles = positions.float()[:, None] * inv_freq  # (t, rotary_dim / 2)
    # The two numbers of a pair are rotary_dim / 2 apart.
    angles = torch.cat((angles, angles), dim=-1)  # (t, rotary_dim)
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    return cos.to(dtype), sin.to(dtype)


def apply_rotary_emb(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate the first rotary_dim numbers of queries or keys (..., t, d); the others stay."""
    cos, sin = cos_sin  # each (t, rotary_dim)
    x_rot, x_pass = x.tensor_split((cos.shape[-1],), dim=-1)
    first, second = x_rot.chunk(2, dim=-1)  # each (..., t, rotary_dim / 2)
    rotated = x_rot * cos + torch.cat((-second, first), dim=-1) * sin  # (..., t, rotary_dim)
    return torch.cat((rotated, x_pass), dim=-1) if x_pass.shape[-1] else rotated
