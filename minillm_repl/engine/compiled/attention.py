"""Attention over the cache: each query takes of the values what its products with the keys say.

Keys lie in blocks of 32 positions, each block turned over (head_size, 32), so that the products of a query with 32
keys are made side by side; values lie position by position. Four queries that share a key are worked on together: the
heads of a group, and, when many tokens are read at once, the tokens after them. A long text is gone through in
stretches, what was mixed so far being scaled when a larger score turns up (Milakov and Gimelshein 2018), and in parts
that different threads take, which are put together at the end.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.compiled.compiling import compiled
from minillm_repl.engine.compiled.lanes import LANES, all_of, fetch, load, multiply_add, store, zeros
from minillm_repl.engine.compiled.pointwise import exponential
from minillm_repl.engine.compiled.team import claim, meet

Floats = NDArray[np.float32]

BLOCK = 32  # positions whose keys lie together
_STRETCH = 256  # positions whose scores are kept at once
_QUERIES = 4  # worked on together

_LINE = 64  # bytes that memory hands over at once
_NEVER = np.float32(-1e30)  # below any score: what a query does not see


class Pieces(NamedTuple):
    """What each query has of each part of the cache; rows are part · t · h."""

    mixed: Floats  # (rows, padded d), values by weights relative to the largest score, not yet divided by their sum
    largest: Floats  # (rows,)
    sums: Floats  # (rows,)


@compiled
def attention(
    counters: Any, size: Any, phase: Any, start: Any, parts: Any, window: Any, keys: Any, values: Any,
    qkv: Any, pieces: Any,
) -> Any:  # fmt: skip
    """Let each query mix values of the positions up to its own. A task is four queries, and a part of the cache.

    keys (g, block · d · 32), values (g, position · padded d); qkv (t, (h + 2g) · d); with a window, a query sees only
    the last `window` positions, its own included.
    """
    kv_heads, padded = len(keys), pieces.mixed.shape[1]
    d = keys.shape[1] * padded // values.shape[1]
    count, heads = len(qkv), qkv.shape[1] // d - 2 * kv_heads
    group, scale = heads // kv_heads, np.float32(1 / np.sqrt(d))
    rows = count * group
    tiles = (rows + _QUERIES - 1) // _QUERIES
    queries, seen = np.empty((_QUERIES, d), np.float32), np.empty((_QUERIES, 2), np.int64)
    scores, mixed = np.empty((_QUERIES, _STRETCH), np.float32), np.empty((_QUERIES, padded), np.float32)
    largest, sums = np.empty(_QUERIES, np.float32), np.empty(_QUERIES, np.float32)
    while True:
        task = claim(counters, phase)
        if task >= kv_heads * tiles * parts:
            break
        part, tile, kv_head = task % parts, task // parts % tiles, task // (parts * tiles)
        low, high = start + count, 0
        for r in range(_QUERIES):
            row = min(tile * _QUERIES + r, rows - 1)  # where there are fewer than four, the last again
            t, head = row // group, kv_head * group + row % group
            for i in range(d):
                queries[r, i] = qkv[t, head * d + i] * scale
            seen[r, 1] = start + t + 1
            seen[r, 0] = max(0, seen[r, 1] - window) if window else 0
            low, high = min(low, seen[r, 0]), max(high, seen[r, 1])
            largest[r], sums[r] = _NEVER, 0
            for i in range(padded):
                mixed[r, i] = 0
        blocks = (high + BLOCK - 1) // BLOCK - low // BLOCK
        each = (blocks + parts - 1) // parts * BLOCK
        first = low // BLOCK * BLOCK + part * each
        last = min(first + each, high)
        for begin in range(first, last, _STRETCH):
            end = min(begin + _STRETCH, last)
            _score(queries, keys[kv_head], values[kv_head], begin, end, scores)
            for r in range(_QUERIES):
                _weigh(scores[r], begin, end, seen[r, 0], seen[r, 1], r, mixed[r], largest, sums)
            _mix(scores, values[kv_head], begin, end, mixed)
        for r in range(min(_QUERIES, rows - tile * _QUERIES)):
            row = tile * _QUERIES + r
            place = (part * count + row // group) * heads + kv_head * group + row % group
            pieces.largest[place], pieces.sums[place] = largest[r], sums[r]
            for i in range(padded):
                pieces.mixed[place, i] = mixed[r, i]
    return meet(counters, size, phase)


@compiled
def _score(queries: Floats, keys: Any, values: Any, start: int, end: int, scores: Floats) -> None:
    """Multiply four queries with the keys of each block; the next keys, and the values, are asked for meanwhile."""
    size = queries.shape[1]
    flat = scores.reshape(-1)
    for block in range(start // BLOCK, (end + BLOCK - 1) // BLOCK):
        a0, a1, b0, b1 = zeros(), zeros(), zeros(), zeros()
        c0, c1, d0, d1 = zeros(), zeros(), zeros(), zeros()
        at = block * size * BLOCK
        for d in range(size):
            for line in range(0, BLOCK, _LINE // keys.itemsize):
                fetch(keys, at + size * BLOCK + line)
                fetch(values, at + line)
            k0, k1 = load(keys, at), load(keys, at + LANES)
            at += BLOCK
            q = all_of(queries[0, d])
            a0, a1 = multiply_add(q, k0, a0), multiply_add(q, k1, a1)
            q = all_of(queries[1, d])
            b0, b1 = multiply_add(q, k0, b0), multiply_add(q, k1, b1)
            q = all_of(queries[2, d])
            c0, c1 = multiply_add(q, k0, c0), multiply_add(q, k1, c1)
            q = all_of(queries[3, d])
            d0, d1 = multiply_add(q, k0, d0), multiply_add(q, k1, d1)
        to = block * BLOCK - start
        store(flat, to, a0)
        store(flat, to + LANES, a1)
        store(flat, to + _STRETCH, b0)
        store(flat, to + _STRETCH + LANES, b1)
        store(flat, to + 2 * _STRETCH, c0)
        store(flat, to + 2 * _STRETCH + LANES, c1)
        store(flat, to + 3 * _STRETCH, d0)
        store(flat, to + 3 * _STRETCH + LANES, d1)


@compiled
def _weigh(
    scores: Floats, start: int, end: int, low: int, high: int, r: int, mixed: Floats, largest: Floats, sums: Floats
) -> None:
    """Turn the scores of one query into weights relative to the largest so far, and scale what was mixed to it."""
    for s in range(max(0, min(low, end) - start)):
        scores[s] = _NEVER
    for s in range(max(0, high - start), end - start):
        scores[s] = _NEVER
    most = largest[r]
    for s in range(end - start):
        most = max(most, scores[s])
    if most > largest[r]:
        shrink = exponential(largest[r] - most)
        sums[r] *= shrink
        for d in range(len(mixed)):
            mixed[d] *= shrink
        largest[r] = most
    added = np.float32(0)
    for s in range(end - start):
        weight = exponential(scores[s] - most) if scores[s] > _NEVER else np.float32(0)
        scores[s] = weight
        added += weight
    sums[r] += added


@compiled
def _mix(scores: Floats, values: Any, start: int, end: int, mixed: Floats) -> None:
    """Add the weighted values to what four queries have mixed so far; even and odd positions apart."""
    padded = mixed.shape[1]
    flat = mixed.reshape(-1)
    for d in range(0, padded, LANES):
        a0, b0, c0, d0 = load(flat, d), load(flat, padded + d), load(flat, 2 * padded + d), load(flat, 3 * padded + d)
        a1, b1, c1, d1 = zeros(), zeros(), zeros(), zeros()
        one = all_of(np.float32(1))
        at = start * padded + d
        for s in range(0, (end - start) // 2 * 2, 2):
            v0, v1 = load(values, at), load(values, at + padded)
            at += 2 * padded
            a0, a1 = multiply_add(all_of(scores[0, s]), v0, a0), multiply_add(all_of(scores[0, s + 1]), v1, a1)
            b0, b1 = multiply_add(all_of(scores[1, s]), v0, b0), multiply_add(all_of(scores[1, s + 1]), v1, b1)
            c0, c1 = multiply_add(all_of(scores[2, s]), v0, c0), multiply_add(all_of(scores[2, s + 1]), v1, c1)
            d0, d1 = multiply_add(all_of(scores[3, s]), v0, d0), multiply_add(all_of(scores[3, s + 1]), v1, d1)
        if (end - start) % 2:
            s = end - start - 1
            v0 = load(values, at)
            a0, b0 = multiply_add(all_of(scores[0, s]), v0, a0), multiply_add(all_of(scores[1, s]), v0, b0)
            c0, d0 = multiply_add(all_of(scores[2, s]), v0, c0), multiply_add(all_of(scores[3, s]), v0, d0)
        store(flat, d, multiply_add(one, a1, a0))
        store(flat, padded + d, multiply_add(one, b1, b0))
        store(flat, 2 * padded + d, multiply_add(one, c1, c0))
        store(flat, 3 * padded + d, multiply_add(one, d1, d0))


@compiled
def merged(counters: Any, size: Any, phase: Any, parts: Any, pieces: Any, z: Any) -> Any:
    """Put the parts of each query together: z (t, h · d)."""
    count, every = len(z), len(pieces.sums) // parts
    d = z.shape[1] * count // every
    while True:
        row = claim(counters, phase)
        if row >= every:
            break
        most, whole = _NEVER, np.float32(0)
        for part in range(parts):
            most = max(most, pieces.largest[part * every + row])
        out = z.reshape(-1)[row * d : (row + 1) * d]
        for i in range(d):
            out[i] = 0
        for part in range(parts):
            place = part * every + row
            share = exponential(pieces.largest[place] - most)
            whole += share * pieces.sums[place]
            for i in range(d):
                out[i] += share * pieces.mixed[place, i]
        for i in range(d):
            out[i] /= whole
    return meet(counters, size, phase)
