"""Attention over the cache: each query takes of the values what its products with the keys say.

Keys lie in blocks of 32 positions, each block turned over (head_size, 32), so that the products of a query with 32 keys
are made side by side; values lie position by position. Four queries that share a key are worked on together: the heads
of a group, and, when many tokens are read at once, the tokens after them. A long text is gone through in stretches, each
with its own largest score, which are put together at the end (Milakov and Gimelshein 2018).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.compiled.lanes import LANES, all_of, compiled, load, multiply_add, store, zeros
from minillm_repl.engine.compiled.pointwise import exponential

Floats = NDArray[np.float32]

BLOCK = 32  # positions whose keys lie together
STRETCH = 512  # positions whose scores are kept at once
QUERIES = 4  # worked on together

_NEVER = np.float32(-1e30)  # below any score: what a query does not see


@compiled
def attend(
    queries: Floats, keys: Any, values: Any, seen: Any, first: int, last: int,
    scores: Floats, mixed: Floats, largest: Floats, sums: Floats,
) -> None:  # fmt: skip
    """Let four queries mix the values of positions `first` (a multiple of 32) up to `last`.

    queries (4, head_size), already scaled; keys (block · head_size · 32), values (position · padded), flat;
    seen (4, 2): from which position up to which each sees. scores (4, STRETCH) is room to work in. Out: mixed (4,
    padded), not yet divided by sums (4,), and the largest score (4,).
    """
    for r in range(QUERIES):
        largest[r], sums[r] = _NEVER, 0
        for d in range(mixed.shape[1]):
            mixed[r, d] = 0
    for start in range(first, last, STRETCH):
        end = min(start + STRETCH, last)
        _score(queries, keys, start, end, scores)
        for r in range(QUERIES):
            _weigh(scores[r], start, end, seen[r, 0], seen[r, 1], r, mixed[r], largest, sums)
        _mix(scores, values, start, end, mixed)


@compiled
def _score(queries: Floats, keys: Any, start: int, end: int, scores: Floats) -> None:
    """Multiply four queries with the keys of each block."""
    size = queries.shape[1]
    flat = scores.reshape(-1)
    for block in range(start // BLOCK, (end + BLOCK - 1) // BLOCK):
        a0, a1, b0, b1 = zeros(), zeros(), zeros(), zeros()
        c0, c1, d0, d1 = zeros(), zeros(), zeros(), zeros()
        at = block * size * BLOCK
        for d in range(size):
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
        store(flat, to + STRETCH, b0)
        store(flat, to + STRETCH + LANES, b1)
        store(flat, to + 2 * STRETCH, c0)
        store(flat, to + 2 * STRETCH + LANES, c1)
        store(flat, to + 3 * STRETCH, d0)
        store(flat, to + 3 * STRETCH + LANES, d1)


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
def merge(largest: Floats, sums: Floats, mixed: Floats, out: Floats) -> None:
    """Put the stretches of one query together: largest (part,), sums (part,), mixed (part, padded), out (head_size,)."""
    most = _NEVER
    for part in range(len(largest)):
        most = max(most, largest[part])
    whole = np.float32(0)
    for d in range(len(out)):
        out[d] = 0
    for part in range(len(largest)):
        share = exponential(largest[part] - most)
        whole += share * sums[part]
        for d in range(len(out)):
            out[d] += share * mixed[part, d]
    for d in range(len(out)):
        out[d] /= whole
