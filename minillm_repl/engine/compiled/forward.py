"""One pass through any of the models, top to bottom, by all threads of a team at once.

The arithmetic is that of model/llama.py and model/gpt.py; what a model has not (a bias, a gate, a norm) has no address
in the table of weights. Each step is a phase: its tasks are claimed by whoever is free, and the next begins when all
are done. Shapes in comments: t = new tokens, w = width, h = heads, g = heads with keys, d = head_size.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.compiled.attention import BLOCK, Pieces, Scratch, attention, merged
from minillm_repl.engine.compiled.compiling import compiled, entry
from minillm_repl.engine.compiled.lanes import borrowed, floats, keep
from minillm_repl.engine.compiled.matrices import product, row_of
from minillm_repl.engine.compiled.pointwise import bend, normalise, norms, rotate
from minillm_repl.engine.compiled.team import claim, meet
from minillm_repl.engine.compiled.weights import (
    DOWN,
    HEAD,
    K_NORM,
    NORM1,
    NORM2,
    NORM_F,
    POSITIONS,
    PROJ,
    Q_NORM,
    QKV,
    TOKENS,
    UP,
)  # fmt: skip

Floats = NDArray[np.float32]

PHASES_OUTSIDE, PHASES_IN_A_LAYER = 3, 10


class Shape(NamedTuple):
    """What compiled code needs to know of a config."""

    heads: int
    kv_heads: int
    head_size: int
    activation: int  # its place in ACTIVATIONS
    parallel: bool
    eps: np.float32


class Room(NamedTuple):
    """Where the numbers of one pass lie; all float32."""

    x: Floats  # (t, w), the residual stream
    normed: Floats  # (t, w)
    normed2: Floats  # (t, w)
    added: Floats  # (t, w)
    qkv: Floats  # (t, (h + 2g) · d)
    z: Floats  # (t, h · d)
    up: Floats  # (t, hidden), or twice that with gates
    hidden: Floats  # (t, hidden); the same as `up` without gates
    pieces: Pieces
    scratch: Scratch  # (threads, …)
    logits: Floats  # (1, vocabulary)


@entry
def forward(
    counters: Any, size: Any, me: Any, ids: Any, start: Any, parts: Any, shape: Any, windows: Any,
    addresses: Any, like: Any, like_outside: Any, keys: Any, values: Any, cos: Any, sin: Any, room: Any,
) -> None:  # fmt: skip
    """Read `ids` at positions from `start`, fill the cache, and leave the logits after the last in `room`.

    keys (layer, g, blocks · d · 32) and values (layer, g, positions · padded d) are the cache; cos and sin (position,
    angles); in `parts` parts the cache is gone through, more than one only for a single token; windows (layer,).
    """
    addresses, keys, values, cos, sin, room = borrowed((addresses, keys, values, cos, sin, room))
    nothing, count, eps = room.x[:0], len(ids), shape.eps
    all_scratch = room.scratch
    scratch = Scratch(
        all_scratch.queries[me], all_scratch.seen[me], all_scratch.scores[me], all_scratch.mixed[me],
        all_scratch.largest[me], all_scratch.sums[me],
    )  # fmt: skip
    outside = addresses[len(addresses) - 1]
    x, normed, normed2, added = room.x[:count], room.normed[:count], room.normed2[:count], room.added[:count]
    qkv, z, up, hidden = room.qkv[:count], room.z[:count], room.up[:count], room.hidden[:count]
    phase = _embed(counters, size, 0, ids, start, outside, like_outside, x)
    for layer in range(len(keys)):
        at, its_keys, its_values = addresses[layer], keys[layer], values[layer]
        phase = norms(counters, size, phase, at[NORM1:], eps, x, normed)
        if shape.parallel:
            phase = norms(counters, size, phase, at[NORM2:], eps, x, normed2)
        phase = product(counters, size, phase, at[QKV:], like, normed, qkv, nothing)
        phase = _remember(counters, size, phase, at, start, shape, cos, sin, its_keys, its_values, qkv)
        if layer == len(keys) - 1:  # only the last position's logits are asked for: the others have done their work
            start, count = start + count - 1, 1
            x, normed, normed2, added = x[-1:], normed[-1:], normed2[-1:], added[-1:]
            qkv, z, up, hidden = qkv[-1:], z[-1:], up[-1:], hidden[-1:]
        phase = attention(
            counters, size, phase, start, parts, windows[layer], shape, its_keys, its_values, qkv, room.pieces, scratch
        )
        phase = merged(counters, size, phase, parts, shape, room.pieces, z)
        phase = product(counters, size, phase, at[PROJ:], like, z, added, x)
        if not shape.parallel:
            phase = norms(counters, size, phase, at[NORM2:], eps, x, normed2)
        phase = product(counters, size, phase, at[UP:], like, normed2, up, nothing)
        phase = bend(counters, size, phase, shape.activation, up, hidden)
        phase = product(counters, size, phase, at[DOWN:], like, hidden, added, x)
    phase = norms(counters, size, phase, outside[NORM_F:], eps, x, normed)
    product(counters, size, phase, outside[HEAD:], like_outside, normed, room.logits, nothing)


@compiled
def _embed(counters: Any, size: Any, phase: Any, ids: Any, start: Any, at: Any, like: Any, x: Any) -> Any:
    """Start the residual stream: each token's row, and where positions are learned, that of its position."""
    count, width = x.shape
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        row_of(at[TOKENS:], like, ids[t], x[t])
        if at[POSITIONS]:
            place = floats(at[POSITIONS], (start + t + 1) * width)
            for i in range(width):
                x[t, i] += place[(start + t) * width + i]
    return meet(counters, size, phase)


@compiled
def _remember(
    counters: Any, size: Any, phase: Any, at: Any, start: Any, shape: Any, cos: Any, sin: Any,
    keys: Any, values: Any, qkv: Any,
) -> Any:  # fmt: skip
    """Normalise queries and keys, turn them to their position, and put keys and values into the cache.

    A task is a head of the queries, the keys or the values.
    """
    heads, kv_heads, d = shape.heads, shape.kv_heads, shape.head_size
    padded = values.shape[1] // (keys.shape[1] // d)
    q_norm, k_norm, no_bias = floats(at[Q_NORM], d), floats(at[K_NORM], d), np.empty(0, np.float32)
    while True:
        head = claim(counters, phase)
        if head >= heads + 2 * kv_heads:
            break
        is_value = head >= heads + kv_heads
        if not is_value:
            norm = q_norm if head < heads else k_norm
            for t in range(len(qkv)):
                row = qkv[t, head * d : (head + 1) * d]
                if len(norm):
                    normalise(row, norm, no_bias, shape.eps, row)
                if cos.shape[1]:
                    rotate(row, cos[start + t], sin[start + t])
        if head >= heads:
            kept = values[head - heads - kv_heads] if is_value else keys[head - heads]
            for t in range(len(qkv)):
                position = start + t
                first, step = position // BLOCK * d * BLOCK + position % BLOCK, BLOCK
                if is_value:
                    first, step = position * padded, 1
                for i in range(d):
                    keep(kept, first + i * step, qkv[t, head * d + i])
    return meet(counters, size, phase)
