"""Attention over the cache: each query takes of the values what its products with the keys say.

Keys lie in blocks of 32 positions, each block turned over (head_size, 32), so that the products of a query with 32
keys are made side by side; values lie position by position. Up to four queries that share a key are worked on
together: the heads of a group, and, when many tokens are read at once, the tokens after them. A long text is gone
through in stretches, what was mixed so far being scaled when a larger score turns up (Milakov and Gimelshein 2018),
and in parts that different threads take, which are put together at the end.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.compiled.compiling import compiled
from minillm_repl.engine.compiled.lanes import LANES, all_of, fetch, greatest, larger, load
from minillm_repl.engine.compiled.pointwise import exponential
from minillm_repl.engine.compiled.team import claim, meet
from minillm_repl.engine.compiled.tiles import WIDTH, outer, plus, rows_from, rows_of, rows_to, tile

Floats = NDArray[np.float32]

BLOCK = 32  # positions whose keys lie together
_STRETCH = 256  # positions whose scores are kept at once
_QUERIES = 4  # the most that are worked on together

_NEVER = np.float32(-1e30)  # below any score: what a query does not see


class Pieces(NamedTuple):
    """What each query has of each part of the cache; rows are part · t · h."""

    mixed: Floats  # (rows, padded d), values by weights relative to the largest score, not yet divided by their sum
    largest: Floats  # (rows,)
    sums: Floats  # (rows,)


class Scratch(NamedTuple):
    """What one thread works with while it goes through one part of the cache for up to four queries."""

    queries: Floats  # (4, d), scaled
    seen: NDArray[np.int64]  # (4, 2), the first position that each query sees, and the one after the last
    scores: Floats  # (4, 256)
    mixed: Floats  # (4, padded d), as in `Pieces`
    largest: Floats  # (4,)
    sums: Floats  # (4,)


def scratch(threads: int, head_size: int, padded: int) -> Scratch:
    """Return room for so many threads, as arrays (threads, …)."""
    sizes = (_QUERIES, head_size), (_QUERIES, 2), (_QUERIES, _STRETCH), (_QUERIES, padded), (_QUERIES,), (_QUERIES,)
    kinds = (np.int64 if name == "seen" else np.float32 for name in Scratch._fields)
    return Scratch(*(np.zeros((threads, *size), kind) for size, kind in zip(sizes, kinds, strict=True)))


@compiled
def attention(
    counters: Any, size: Any, phase: Any, start: Any, parts: Any, window: Any, shape: Any, keys: Any, values: Any,
    qkv: Any, pieces: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Let each query mix values of the positions up to its own. A task is four queries, and a part of the cache.

    keys (g, block · d · 32), values (g, position · padded d); qkv (t, (h + 2g) · d); with a window, a query sees only
    the last `window` positions, its own included.
    """
    d, group = shape.head_size, shape.heads // shape.kv_heads
    count, scale = len(qkv), np.float32(1 / np.sqrt(d))
    rows = count * group
    tiles = (rows + _QUERIES - 1) // _QUERIES
    queries, seen, mixed, largest, sums = scratch.queries, scratch.seen, scratch.mixed, scratch.largest, scratch.sums
    while True:
        task = claim(counters, phase)
        if task >= shape.kv_heads * tiles * parts:
            break
        part, first_row, kv_head = task % parts, task // parts % tiles * _QUERIES, task // (parts * tiles)
        together = min(_QUERIES, rows - first_row)
        low, high = start + count, 0
        for r in range(together):
            t, head = (first_row + r) // group, kv_head * group + (first_row + r) % group
            queries[r] = qkv[t, head * d : (head + 1) * d] * scale
            seen[r, 1] = start + t + 1
            seen[r, 0] = max(0, seen[r, 1] - window) if window else 0
            low, high = min(low, seen[r, 0]), max(high, seen[r, 1])
            largest[r], sums[r] = _NEVER, 0
        mixed[:] = 0
        blocks = (high + BLOCK - 1) // BLOCK - low // BLOCK
        each = (blocks + parts - 1) // parts * BLOCK
        first = low // BLOCK * BLOCK + part * each
        last = min(first + each, high)
        if together == 4:
            _go_through(tile(4), keys[kv_head], values[kv_head], first, last, scratch)
        elif together > 1:  # two are worked on as three, the last for nobody: each kind takes a second to compile
            _go_through(tile(3), keys[kv_head], values[kv_head], first, last, scratch)
        else:
            _go_through(tile(1), keys[kv_head], values[kv_head], first, last, scratch)
        for r in range(together):
            row = first_row + r
            place = (part * count + row // group) * shape.heads + kv_head * group + row % group
            pieces.largest[place], pieces.sums[place] = largest[r], sums[r]
            pieces.mixed[place] = mixed[r]
    return meet(counters, size, phase)


@compiled
def _go_through(none: Any, keys: Any, values: Any, first: int, last: int, scratch: Any) -> None:
    """Mix the values of positions `first` to `last` for the queries of one tile, of which `none` is empty."""
    scores, seen, mixed = scratch.scores, scratch.seen, scratch.mixed
    for begin in range(first, last, _STRETCH):
        end = min(begin + _STRETCH, last)
        _score(none, scratch.queries, keys, values, begin, end, scores)
        made = (end - begin + BLOCK - 1) // BLOCK * BLOCK  # of whole blocks
        for r in range(rows_of(none)):
            low, high = seen[r, 0] - begin, seen[r, 1] - begin
            _weigh(scores[r, :made], low, high, r, mixed[r], scratch.largest, scratch.sums)
        _mix(none, scores, values, begin, end, mixed)


@compiled
def _score(none: Any, queries: Floats, keys: Any, values: Any, start: int, end: int, scores: Floats) -> None:
    """Multiply queries with the keys of each block; the next keys, and the values, are asked for meanwhile."""
    size = queries.shape[1]
    for block in range(start // BLOCK, (end + BLOCK - 1) // BLOCK):
        products, at = none, block * size * BLOCK
        for d in range(size):
            fetch(keys, at + size * BLOCK, BLOCK)
            fetch(values, at, BLOCK)
            products = outer(products, queries, d, size, keys, at)
            at += BLOCK
        rows_to(products, scores, block * BLOCK - start, _STRETCH)


@compiled
def _weigh(scores: Floats, low: int, high: int, r: int, mixed: Floats, largest: Floats, sums: Floats) -> None:
    """Turn the scores of one query into weights relative to the largest so far, and scale what was mixed to it.

    Of the scores, those from `low` to `high` are of positions that the query sees.
    """
    count = len(scores)
    for s in range(min(low, count)):
        scores[s] = _NEVER
    for s in range(max(0, high), count):
        scores[s] = _NEVER
    most = _largest(scores, largest[r])
    if most > largest[r]:
        shrink = exponential(largest[r] - most)
        sums[r] *= shrink
        for d in range(len(mixed)):
            mixed[d] *= shrink
        largest[r] = most
    added = np.float32(0)
    for s in range(count):
        weight = exponential(scores[s] - most) if scores[s] > _NEVER else np.float32(0)
        scores[s] = weight
        added += weight
    sums[r] += added


@compiled
def _largest(scores: Floats, least: Any) -> Any:
    """Return the largest of some scores, a multiple of 16, or `least` if that is larger."""
    most = all_of(least)
    for s in range(0, len(scores), LANES):
        most = larger(load(scores, s), most)
    return greatest(most)


@compiled
def _mix(none: Any, scores: Floats, values: Any, start: int, end: int, mixed: Floats) -> None:
    """Add the weighted values to what the queries have mixed so far."""
    padded = mixed.shape[1]
    for d in range(0, padded, WIDTH):
        so_far, more = rows_from(none, mixed, d, padded), none  # two sums of each, so that neither waits for itself
        for s in range(0, (end - start) // 2 * 2, 2):
            so_far = outer(so_far, scores, s, _STRETCH, values, (start + s) * padded + d)
            more = outer(more, scores, s + 1, _STRETCH, values, (start + s + 1) * padded + d)
        if (end - start) % 2:
            so_far = outer(so_far, scores, end - start - 1, _STRETCH, values, (end - 1) * padded + d)
        rows_to(plus(so_far, more), mixed, d, padded)


@compiled
def merged(counters: Any, size: Any, phase: Any, parts: Any, shape: Any, pieces: Any, z: Any) -> Any:
    """Put the parts of each query together: z (t, h · d). A task is a token's queries."""
    count, heads, d = len(z), shape.heads, shape.head_size
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        for head in range(heads):
            row, most, whole = t * heads + head, _NEVER, np.float32(0)
            for part in range(parts):
                most = max(most, pieces.largest[part * count * heads + row])
            out = z[t, head * d : (head + 1) * d]
            out[:] = 0
            for part in range(parts):
                place = part * count * heads + row
                share, mixed = exponential(pieces.largest[place] - most), pieces.mixed[place]
                whole += share * pieces.sums[place]
                for i in range(d):
                    out[i] += share * mixed[i]
            for i in range(d):
                out[i] /= whole
    return meet(counters, size, phase)
