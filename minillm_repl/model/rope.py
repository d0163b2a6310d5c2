"""Rotary positions: queries and keys turn with their place, so that their product depends on the
distance alone.

Computed in float32 in the order in which the `transformers` library does, so that far positions
agree with it too.
"""

import math

import torch
from torch import Tensor

from minillm_repl.model.config import Rope

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each position's angles, each (time, numbers that turn)."""


def _speeds(rope: Rope, head_size: int, device: torch.device) -> Tensor:
    """Return how far each pair turns per position, in radians: (numbers that turn / 2,)."""
    turning = int(head_size * rope.share)
    pairs = torch.arange(0, turning, 2, dtype=torch.int64, device=device).float() / turning
    speeds = 1.0 / (rope.theta**pairs)
    if rope.scaling == "linear":
        return speeds / rope.factor
    if rope.scaling == "llama3":
        # within the context that it was first trained with
        turns = rope.original / (2 * math.pi / speeds)
        # 1: fast enough to stay as it is
        kept = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
        return (1 - kept) * speeds / rope.factor + kept * speeds
    return speeds


def rotation(rope: Rope, head_size: int, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Return the rotation of each of the positions (time,)."""
    # (time, pairs)
    angles = positions.float()[:, None] * _speeds(rope, head_size, positions.device)
    # the two numbers of a pair stand half the turning part apart
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turn queries and keys (..., time, head_size); what does not turn stays."""
    cos, sin = turn
    turning, still = x.tensor_split((cos.shape[-1],), dim=-1)
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, still), dim=-1) if still.shape[-1] else turned
