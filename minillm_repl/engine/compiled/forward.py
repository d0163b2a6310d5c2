"""One pass through any of the models, top to bottom, by all threads of a team at once.

The arithmetic is that of model/llama.py and model/gpt.py; what a model has not (a bias, a gate, a norm) has no address in
the table of weights. Each step is a phase: its tasks are claimed by whoever is free, and the next begins when all are
done. Shapes in comments: t = new tokens, w = width, h = heads, g = heads with keys, d = head_size.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray
from numpy.typing import NDArray

from minillm_repl.engine.compiled.attention import BLOCK, QUERIES, STRETCH, attend, merge
from minillm_repl.engine.compiled.lanes import compiled, keep, pointer, widen
from minillm_repl.engine.compiled.pointwise import activate, normalise, rotate
from minillm_repl.engine.compiled.products import ROWS_AT_ONCE, finish, multiply
from minillm_repl.engine.compiled.team import claim, meet
from minillm_repl.engine.compiled.weights import (
    DOWN, DOWN_BIAS, DOWN_SCALE, HEAD, HEAD_BIAS, HEAD_SCALE, K_NORM, NORM1, NORM1_BIAS, NORM2, NORM2_BIAS, NORM_F,
    NORM_F_BIAS, POSITIONS, PROJ, PROJ_BIAS, PROJ_SCALE, Q_NORM, QKV, QKV_BIAS, QKV_SCALE, TOKENS, TOKENS_SCALE, UP,
    UP_BIAS, UP_SCALE,
)  # fmt: skip

Floats = NDArray[np.float32]

_BENT_AT_ONCE = 1024  # numbers of a hidden layer that make one task
PHASES_OUTSIDE, PHASES_IN_A_LAYER = 3, 10


class Shape(NamedTuple):
    """What compiled code needs to know of a config."""

    heads: int
    kv_heads: int
    head_size: int
    activation: int
    gated: bool
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
    mixed: Floats  # (parts · t · h, padded d)
    largest: Floats  # (parts · t · h)
    sums: Floats  # (parts · t · h)
    logits: Floats  # (1, vocabulary)


@compiled
def forward(
    counters: Any, size: Any, ids: Any, start: Any, parts: Any, shape: Any, windows: Any,
    addresses: Any, like: Any, keys: Any, values: Any, cos: Any, sin: Any, room: Any,
) -> None:  # fmt: skip
    """Read `ids` at positions from `start`, fill the cache, and leave the logits after the last in `room`.

    keys (layer, g, blocks · d · 32) and values (layer, g, positions · padded d) are the cache; cos and sin (position,
    angles); in `parts` parts the cache is gone through, more than one only for a single token; windows (layer,).
    """
    nothing = np.empty((0, 0), np.float32)
    outside = addresses[len(addresses) - 1]
    phase = _embed(counters, size, 0, ids, start, outside, like, room.x)
    for layer in range(len(keys)):
        at = addresses[layer]
        phase = _norms(counters, size, phase, at, NORM1, shape, room.x, room.normed)
        if shape.parallel:
            phase = _norms(counters, size, phase, at, NORM2, shape, room.x, room.normed2)
        phase = _product(counters, size, phase, at, QKV, like, room.normed, room.qkv, nothing)
        phase = _remember(counters, size, phase, at, start, shape, cos, sin, keys[layer], values[layer], room.qkv)
        phase = _attention(
            counters, size, phase, start, parts, windows[layer], shape, keys[layer], values[layer], room
        )
        phase = _merged(counters, size, phase, parts, shape, room)
        phase = _product(counters, size, phase, at, PROJ, like, room.z, room.added, room.x)
        if not shape.parallel:
            phase = _norms(counters, size, phase, at, NORM2, shape, room.x, room.normed2)
        phase = _product(counters, size, phase, at, UP, like, room.normed2, room.up, nothing)
        phase = _bend(counters, size, phase, shape, room.up, room.hidden)
        phase = _product(counters, size, phase, at, DOWN, like, room.hidden, room.added, room.x)
    last = len(ids) - 1
    phase = _norms(counters, size, phase, outside, NORM_F, shape, room.x[last:], room.normed[last:])
    _product(counters, size, phase, outside, HEAD, like, room.normed[last:], room.logits, nothing)


@compiled
def _floats(address: Any, length: Any) -> Any:
    """Return the float32 numbers at an address; none where there is none."""
    return carray(pointer(address, np.empty(0, np.float32)), (length if address else 0,))


@compiled
def _embed(counters: Any, size: Any, phase: Any, ids: Any, start: Any, at: Any, like: Any, x: Any) -> Any:
    """Start the residual stream: each token's row, and where positions are learned, that of its position."""
    count, width = x.shape
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        row = carray(pointer(at[TOKENS] + np.uint64(ids[t] * width * like.itemsize), like), (width,))
        scale = np.float32(1)
        if at[TOKENS_SCALE]:
            scale = _floats(at[TOKENS_SCALE], ids[t] + 1)[ids[t]]
        for i in range(width):
            x[t, i] = widen(row[i]) * scale
        if at[POSITIONS]:
            place = _floats(at[POSITIONS], (start + t + 1) * width)
            for i in range(width):
                x[t, i] += place[(start + t) * width + i]
    return meet(counters, size, phase)


@compiled
def _norms(counters: Any, size: Any, phase: Any, at: Any, column: Any, shape: Any, x: Any, y: Any) -> Any:
    """Normalise each token's part of the residual stream."""
    count, width = x.shape
    gain, bias = _floats(at[column], width), _floats(at[column + 1], width)
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        normalise(x[t], gain, bias, shape.eps, y[t])
    return meet(counters, size, phase)


@compiled
def _product(
    counters: Any, size: Any, phase: Any, at: Any, column: Any, like: Any, x: Any, y: Any, stream: Any
) -> Any:
    """Multiply by a matrix, with its bias; add the result to `stream`, if there is one."""
    inputs, rows = x.shape[1], y.shape[1]
    weight = carray(pointer(at[column], like), (rows * inputs,))
    scale, bias = _floats(at[column + 1], rows), _floats(at[column + 2], rows)
    while True:
        first = claim(counters, phase) * ROWS_AT_ONCE
        if first >= rows:
            break
        last = min(first + ROWS_AT_ONCE, rows)
        multiply(weight, x, y, first, last)
        finish(y, first, last, scale, bias)
        for t in range(len(stream)):
            for o in range(first, last):
                stream[t, o] += y[t, o]
    return meet(counters, size, phase)


@compiled
def _remember(
    counters: Any, size: Any, phase: Any, at: Any, start: Any, shape: Any, cos: Any, sin: Any,
    keys: Any, values: Any, qkv: Any,
) -> Any:  # fmt: skip
    """Normalise queries and keys, turn them to their position, and put keys and values into the cache."""
    heads, kv_heads, d = shape.heads, shape.kv_heads, shape.head_size
    every = heads + 2 * kv_heads
    padded = values.shape[1] // (keys.shape[1] // d)
    q_norm, k_norm, no_bias = _floats(at[Q_NORM], d), _floats(at[K_NORM], d), np.empty(0, np.float32)
    while True:
        task = claim(counters, phase)
        if task >= len(qkv) * every:
            break
        t, head = task // every, task % every
        position, row = start + t, qkv[t, head * d : (head + 1) * d]
        if head < heads + kv_heads:
            norm = q_norm if head < heads else k_norm
            if len(norm):
                normalise(row, norm, no_bias, shape.eps, row)
            rotate(row, cos[position], sin[position])
            if head >= heads:
                block, place = position // BLOCK, position % BLOCK
                for i in range(d):
                    keep(keys[head - heads], (block * d + i) * BLOCK + place, row[i])
        else:
            for i in range(d):
                keep(values[head - heads - kv_heads], position * padded + i, row[i])
    return meet(counters, size, phase)


@compiled
def _attention(
    counters: Any, size: Any, phase: Any, start: Any, parts: Any, window: Any, shape: Any,
    keys: Any, values: Any, room: Any,
) -> Any:  # fmt: skip
    """Attend: a task is four queries that share a key, and a part of the cache."""
    heads, kv_heads, d = shape.heads, shape.kv_heads, shape.head_size
    count, group, scale = len(room.x), heads // kv_heads, np.float32(1 / np.sqrt(d))
    rows = count * group
    tiles = (rows + QUERIES - 1) // QUERIES
    queries, seen = np.empty((QUERIES, d), np.float32), np.empty((QUERIES, 2), np.int64)
    scores, mixed = np.empty((QUERIES, STRETCH), np.float32), np.empty((QUERIES, room.mixed.shape[1]), np.float32)
    largest, sums = np.empty(QUERIES, np.float32), np.empty(QUERIES, np.float32)
    while True:
        task = claim(counters, phase)
        if task >= kv_heads * tiles * parts:
            break
        part, tile, kv_head = task % parts, task // parts % tiles, task // (parts * tiles)
        low, high = start + count, 0
        for r in range(QUERIES):
            row = min(tile * QUERIES + r, rows - 1)  # where there are fewer than four, the last again
            t, head = row // group, kv_head * group + row % group
            for i in range(d):
                queries[r, i] = room.qkv[t, head * d + i] * scale
            seen[r, 1] = start + t + 1
            seen[r, 0] = max(0, seen[r, 1] - window) if window else 0
            low, high = min(low, seen[r, 0]), max(high, seen[r, 1])
        blocks = (high + BLOCK - 1) // BLOCK - low // BLOCK
        each = (blocks + parts - 1) // parts * BLOCK
        first = low // BLOCK * BLOCK + part * each
        attend(
            queries, keys[kv_head], values[kv_head], seen, first, min(first + each, high), scores, mixed, largest, sums
        )
        for r in range(min(QUERIES, rows - tile * QUERIES)):
            row = tile * QUERIES + r
            place = (part * count + row // group) * heads + kv_head * group + row % group
            room.largest[place], room.sums[place] = largest[r], sums[r]
            for i in range(d):
                room.mixed[place, i] = mixed[r, i]
    return meet(counters, size, phase)


@compiled
def _merged(counters: Any, size: Any, phase: Any, parts: Any, shape: Any, room: Any) -> Any:
    """Put the parts of each query together: z (t, h · d)."""
    d = shape.head_size
    every = len(room.x) * shape.heads
    largest, sums = room.largest.reshape((-1, every)), room.sums.reshape((-1, every))
    mixed = room.mixed.reshape((-1, every, room.mixed.shape[1]))
    while True:
        row = claim(counters, phase)
        if row >= every:
            break
        head = row % shape.heads
        out = room.z[row // shape.heads, head * d : (head + 1) * d]
        merge(largest[:parts, row], sums[:parts, row], mixed[:parts, row], out)
    return meet(counters, size, phase)


@compiled
def _bend(counters: Any, size: Any, phase: Any, shape: Any, up: Any, hidden: Any) -> Any:
    """Apply the activation, and let it open and close the gates of the other half, if there is one."""
    count, width = hidden.shape
    pieces = (width + _BENT_AT_ONCE - 1) // _BENT_AT_ONCE
    while True:
        task = claim(counters, phase)
        if task >= count * pieces:
            break
        t, first = task // pieces, task % pieces * _BENT_AT_ONCE
        last = min(first + _BENT_AT_ONCE, width)
        activate(up[t, first:last], shape.activation)
        if shape.gated:
            for i in range(first, last):
                hidden[t, i] = up[t, i] * up[t, width + i]
    return meet(counters, size, phase)
