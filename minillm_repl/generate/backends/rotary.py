"""Rotary positions without torch: the same numbers as model/rope.py, as a test checks."""

import math

import numpy as np
from numpy.typing import NDArray

from minillm_repl.model.config import AnyConfig, Rope

Floats = NDArray[np.float32]


def rotary_angles(config: AnyConfig, positions: int) -> tuple[Floats, Floats]:
    """Return cosine and sine of each pair's angle at the first positions, each (positions, pairs).

    A model whose positions are learned has no pairs.
    """
    if config.rope is None:
        return np.empty((positions, 0), np.float32), np.empty((positions, 0), np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * _speeds(config.rope, config.head_dim)
    return np.cos(angles), np.sin(angles)


def _speeds(rope: Rope, head_size: int) -> Floats:
    """Return how far each pair turns per position, in radians: (pairs,)."""
    turning = int(head_size * rope.rotary_pct)
    pairs = np.arange(0, turning, 2).astype(np.float32) / np.float32(turning)
    speeds: Floats = np.float32(1) / np.float32(rope.theta) ** pairs
    if rope.scaling == "linear":
        speeds = speeds / np.float32(rope.factor)
    if rope.scaling == "llama3":
        turns = np.float32(rope.original_max_position_embeddings) / (
            np.float32(2 * math.pi) / speeds
        )
        kept = np.clip(
            (turns - np.float32(rope.low_freq_factor))
            / np.float32(rope.high_freq_factor - rope.low_freq_factor),
            0,
            1,
        )
        speeds = ((1 - kept) * speeds / np.float32(rope.factor) + kept * speeds).astype(np.float32)
    return speeds
