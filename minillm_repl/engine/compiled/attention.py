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
from minillm_repl.engine.compiled.lanes import all_of, fetch, greatest, larger, load
from minillm_repl.engine.compiled.pointwise import exponential
from minillm_repl.engine.compiled.room import BLOCK, LANES, QUERIES, STRETCH, WIDTH
from minillm_repl.engine.compiled.tasks import claim, meet
from minillm_repl.engine.compiled.tiles import outer, plus, rows_from, rows_of, rows_to, tile

Floats = NDArray[np.float32]

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


@compiled
def attention(
    counters: Any, size: Any, phase: Any, start: Any, parts: Any, window: Any, shape: Any, keys: Any, values: Any,
    qkv: Any, pieces: Any, z: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Let each query mix values of the positions up to its own. A task is four queries, and a part of the cache.

    keys (g, block · d · 32), values (g, position · padded d); qkv (t, (h + 2g) · d); with a window, a query sees only
    the last `window` positions, its own included. What is mixed goes to z (t, h · d), or, of a text in several parts,
    to `pieces`.
    """
    count, group = len(qkv), shape.heads // shape.kv_heads
    rows = count * group
    tiles = (rows + QUERIES - 1) // QUERIES
    while True:
        task = claim(counters, phase)
        if task >= shape.kv_heads * tiles * parts:
            break
        part, first_row, kv_head = task % parts, task // parts % tiles * QUERIES, task // (parts * tiles)
        t, head, together = first_row // group, first_row % group, min(QUERIES, rows - first_row)
        low, high = _ask(qkv, start, window, shape, group, kv_head, t, head, together, scratch)
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
        _answer(scratch, shape, group, kv_head, t, head, together, part, parts, count, z, pieces)
    return meet(counters, size, phase)


@compiled
def _ask(
    qkv: Any, start: Any, window: Any, shape: Any, group: Any, kv_head: Any, t: Any, head: Any, together: Any,
    scratch: Any,
) -> Any:  # fmt: skip
    """Make the queries of a tile ready, from head `head` of a group at token t on; return which positions they see."""
    d, scale = shape.head_size, np.float32(1) / np.sqrt(np.float32(shape.head_size))
    low, high = start + len(qkv), 0
    for r in range(together):
        query = (kv_head * group + head) * d
        for i in range(d):
            scratch.queries[r, i] = qkv[t, query + i] * scale
        last = start + t + 1
        first = max(0, last - window) if window else 0
        scratch.seen[r, 0], scratch.seen[r, 1] = first, last
        scratch.largest[r], scratch.sums[r] = _NEVER, 0
        low, high = min(low, first), max(high, last)
        t, head = (t, head + 1) if head + 1 < group else (t + 1, 0)
    for r in range(QUERIES):
        for i in range(shape.padded):
            scratch.mixed[r, i] = 0
    return low, high


@compiled
def _answer(
    scratch: Any, shape: Any, group: Any, kv_head: Any, t: Any, head: Any, together: Any, part: Any, parts: Any,
    count: Any, z: Any, pieces: Any,
) -> None:  # fmt: skip
    """Put what the queries of a tile have mixed where it belongs."""
    d = shape.head_size
    for r in range(together):
        own = kv_head * group + head
        if parts == 1:
            whole = np.float32(1) / scratch.sums[r]
            for i in range(d):
                z[t, own * d + i] = scratch.mixed[r, i] * whole
        else:
            place = (part * count + t) * shape.heads + own
            pieces.largest[place], pieces.sums[place] = scratch.largest[r], scratch.sums[r]
            for i in range(d):
                pieces.mixed[place, i] = scratch.mixed[r, i]
        t, head = (t, head + 1) if head + 1 < group else (t + 1, 0)


@compiled
def _go_through(none: Any, keys: Any, values: Any, first: int, last: int, scratch: Any) -> None:
    """Mix the values of positions `first` to `last` for the queries of one tile, of which `none` is empty."""
    scores, seen, mixed = scratch.scores, scratch.seen, scratch.mixed
    for begin in range(first, last, STRETCH):
        end = min(begin + STRETCH, last)
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
        rows_to(products, scores, block * BLOCK - start, STRETCH)


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
    if most > largest[r] and sums[r] > 0:
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
            so_far = outer(so_far, scores, s, STRETCH, values, (start + s) * padded + d)
            more = outer(more, scores, s + 1, STRETCH, values, (start + s + 1) * padded + d)
        if (end - start) % 2:
            so_far = outer(so_far, scores, end - start - 1, STRETCH, values, (end - 1) * padded + d)
        rows_to(plus(so_far, more), mixed, d, padded)


@compiled
def merged(counters: Any, size: Any, phase: Any, parts: Any, shape: Any, pieces: Any, z: Any) -> Any:
    """Put the parts of each query together, if there are several: z (t, h · d). A task is a token's queries."""
    count, heads, d = len(z), shape.heads, shape.head_size
    if parts == 1:
        return phase
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        for head in range(heads):
            row, most, whole = t * heads + head, _NEVER, np.float32(0)
            for part in range(parts):
                most = max(most, pieces.largest[part * count * heads + row])
            out = z[t, head * d : (head + 1) * d]
            for i in range(d):
                out[i] = 0
            for part in range(parts):
                place = part * count * heads + row
                share, mixed = exponential(pieces.largest[place] - most), pieces.mixed[place]
                whole += share * pieces.sums[place]
                for i in range(d):
                    out[i] += share * mixed[i]
            for i in range(d):
                out[i] /= whole
    return meet(counters, size, phase)
