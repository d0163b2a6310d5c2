"""Rotary positions: queries and keys turn with their place; their product is of distance alone.

Computed in float32 in the order in which the `transformers` library does, so that far positions
agree with it too.
"""

import math

import torch
from torch import Tensor

from minillm_repl.model.config import Rope

CosSin = tuple[Tensor, Tensor]
"""Cosine and sine of each position's angles, each (time, numbers that turn)."""


def _inv_freq(rope: Rope, head_dim: int, device: torch.device) -> Tensor:
    """Return how far each pair turns per position, in radians: (numbers that turn / 2,)."""
    rotary_dim = int(head_dim * rope.rotary_pct)
    exponents = (
        torch.arange(0, rotary_dim, 2, dtype=torch.int64, device=device).float() / rotary_dim
    )
    inv_freq = 1.0 / (rope.theta**exponents)
    if rope.scaling == "linear":
        return inv_freq / rope.factor
    if rope.scaling == "llama3":
        # within the context that it was first trained with
        rotations = rope.original_max_position_embeddings / (2 * math.pi / inv_freq)
        # 1: fast enough to stay as it is
        smooth_factor = (
            (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        ).clamp(0, 1)
        return (1 - smooth_factor) * inv_freq / rope.factor + smooth_factor * inv_freq
    return inv_freq


def compute_cos_sin(rope: Rope, head_dim: int, positions: Tensor, dtype: torch.dtype) -> CosSin:
    """Return the rotation of each of the positions (time,)."""
    # (time, pairs)
    angles = positions.float()[:, None] * _inv_freq(rope, head_dim, positions.device)
    # the two numbers of a pair stand half the turning part apart
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary_emb(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Turn queries and keys (..., time, head_size); what does not turn stays."""
    cos, sin = cos_sin
    x_rot, x_pass = x.tensor_split((cos.shape[-1],), dim=-1)
    first, second = x_rot.chunk(2, dim=-1)
    rotated = x_rot * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, x_pass), dim=-1) if x_pass.shape[-1] else rotated
