"""Attention over the cache: each query takes of the values what its products with the keys say.

Keys lie in blocks of 32 positions, each block turned over (head_size, 32), so that the products of
a query with 32 keys are made side by side; values lie position by position. Up to four queries that
share a key are worked on together: the heads of a group, and, when many tokens are read at once,
the tokens after them. A long text is gone through in stretches, what was mixed so far being scaled
when a larger score turns up (Milakov and Gimelshein 2018), and in parts that different threads
take, which are put together at the end.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.compiling import compiled
from minillm_repl.generate.backends.compiled.lanes import (
    WHOLE,
    all_of,
    array_at,
    fetch,
    floats,
    greatest,
    larger,
    load,
)
from minillm_repl.generate.backends.compiled.pointwise import exponential
from minillm_repl.generate.backends.compiled.room import BLOCK, LANES, QUERIES, STRETCH, WIDTH
from minillm_repl.generate.backends.compiled.tasks import claim, meet
from minillm_repl.generate.backends.compiled.tiles import (
    outer,
    plus,
    rows_from,
    rows_of,
    rows_to,
    tile,
)

Floats = NDArray[np.float32]

_NEVER = np.float32(-1e30)  # below any score: what a query does not see


@compiled
def attention(
    counters: Any, size: Any, phase: Any, start: Any, parts: Any, window: Any, keys: Any,
    values: Any, qkv: Any, z: Any,
    room: Any,
) -> Any:  # fmt: skip
    """Let each query mix values of the positions up to its own. A task is four queries, and a part
    of the cache.

    keys (g, block · d · 32), values (g, position · padded d); qkv (t, (h + 2g) · d); with a window,
    a query sees only the last `window` positions, its own included. What is mixed goes to z (t, h ·
    d), or, of a text in several parts, to the room's parts.
    """
    count, kv_heads = len(qkv), room.kv_heads
    group = room.heads // kv_heads
    rows = count * group
    tiles = (rows + QUERIES - 1) // QUERIES
    while True:
        task = claim(counters, phase)
        if task >= kv_heads * tiles * parts:
            break
        part, first_row, kv_head = (
            task % parts,
            task // parts % tiles * QUERIES,
            task // (parts * tiles),
        )
        t, head, together = first_row // group, first_row % group, min(QUERIES, rows - first_row)
        low, high = _ask(qkv, start, window, group, kv_head, t, head, together, room)
        blocks = (high + BLOCK - 1) // BLOCK - low // BLOCK
        each = (blocks + parts - 1) // parts * BLOCK
        first = low // BLOCK * BLOCK + part * each
        last = min(first + each, high)
        if together == 4:
            _go_through(tile(4), keys[kv_head], values[kv_head], first, last, room)
        elif together > 1:
            # two are worked on as three, the last for nobody: each kind takes a second to compile
            _go_through(tile(3), keys[kv_head], values[kv_head], first, last, room)
        else:
            _go_through(tile(1), keys[kv_head], values[kv_head], first, last, room)
        _answer(group, kv_head, t, head, together, part, parts, count, z, room)
    return meet(counters, size, phase)


@compiled
def _ask(
    qkv: Any, start: Any, window: Any, group: Any, kv_head: Any, t: Any, head: Any, together: Any,
    room: Any
) -> Any:  # fmt: skip
    """Make the queries of a tile ready, from head `head` of a group at token t on; return which
    positions they see.
    """
    d, padded = room.head_size, room.padded
    scale = np.float32(1) / np.sqrt(np.float32(d))
    queries, seen = (
        floats(room.queries_at, (QUERIES, d)),
        array_at(room.seen_at, WHOLE, (QUERIES, 2)),
    )
    mixed = floats(room.mixed_at, (QUERIES, padded))
    largest, sums = floats(room.largest_at, (QUERIES,)), floats(room.sums_at, (QUERIES,))
    low, high = start + len(qkv), 0
    for r in range(together):
        query = (kv_head * group + head) * d
        for i in range(d):
            queries[r, i] = qkv[t, query + i] * scale
        last = start + t + 1
        first = max(0, last - window) if window else 0
        seen[r, 0], seen[r, 1] = first, last
        largest[r], sums[r] = _NEVER, 0
        low, high = min(low, first), max(high, last)
        t, head = (t, head + 1) if head + 1 < group else (t + 1, 0)
    for r in range(QUERIES):
        for i in range(padded):
            mixed[r, i] = 0
    return low, high


@compiled
def _answer(
    group: Any, kv_head: Any, t: Any, head: Any, together: Any, part: Any, parts: Any, count: Any,
    z: Any, room: Any
) -> None:  # fmt: skip
    """Put what the queries of a tile have mixed where it belongs."""
    d, heads, padded = room.head_size, room.heads, room.padded
    mixed = floats(room.mixed_at, (QUERIES, padded))
    largest, sums = floats(room.largest_at, (QUERIES,)), floats(room.sums_at, (QUERIES,))
    part_mixed = floats(room.part_mixed_at, (room.rows, padded))
    part_largest, part_sums = (
        floats(room.part_largest_at, (room.rows,)),
        floats(room.part_sums_at, (room.rows,)),
    )
    for r in range(together):
        own = kv_head * group + head
        if parts == 1:
            whole = np.float32(1) / sums[r]
            for i in range(d):
                z[t, own * d + i] = mixed[r, i] * whole
        else:
            place = (part * count + t) * heads + own
            part_largest[place], part_sums[place] = largest[r], sums[r]
            for i in range(d):
                part_mixed[place, i] = mixed[r, i]
        t, head = (t, head + 1) if head + 1 < group else (t + 1, 0)


@compiled
def _go_through(none: Any, keys: Any, values: Any, first: int, last: int, room: Any) -> None:
    """Mix the values of positions `first` to `last` for a tile of queries; `none` is empty."""
    for begin in range(first, last, STRETCH):
        end = min(begin + STRETCH, last)
        _score(none, keys, values, begin, end, room)
        for r in range(rows_of(none)):
            _weigh(r, begin, end, room)
        _mix(none, values, begin, end, room)


@compiled
def _score(none: Any, keys: Any, values: Any, start: int, end: int, room: Any) -> None:
    """Multiply queries with the keys of each block; meanwhile the next keys and the values come."""
    size = room.head_size
    queries, scores = (
        floats(room.queries_at, (QUERIES, size)),
        floats(room.scores_at, (QUERIES, STRETCH)),
    )
    for block in range(start // BLOCK, (end + BLOCK - 1) // BLOCK):
        products, at = none, block * size * BLOCK
        for d in range(size):
            fetch(keys, at + size * BLOCK, BLOCK)
            fetch(values, at, BLOCK)
            products = outer(products, queries, d, size, keys, at)
            at += BLOCK
        rows_to(products, scores, block * BLOCK - start, STRETCH)


@compiled
def _weigh(r: int, start: int, end: int, room: Any) -> None:
    """Turn the scores of one query into weights relative to the largest so far, and scale what
    was mixed to it.
    """
    scores = floats(room.scores_at, (QUERIES, STRETCH))[r]
    seen = array_at(room.seen_at, WHOLE, (QUERIES, 2))
    largest, sums = floats(room.largest_at, (QUERIES,)), floats(room.sums_at, (QUERIES,))
    count = (end - start + BLOCK - 1) // BLOCK * BLOCK  # of whole blocks
    for s in range(min(seen[r, 0] - start, count)):
        scores[s] = _NEVER
    for s in range(max(0, seen[r, 1] - start), count):
        scores[s] = _NEVER
    before = largest[r]
    most = _largest(scores, count, before)
    if most > before and sums[r] > 0:
        mixed, shrink = floats(room.mixed_at, (QUERIES, room.padded)), exponential(before - most)
        sums[r] *= shrink
        for d in range(room.padded):
            mixed[r, d] *= shrink
    largest[r] = most
    added = np.float32(0)
    for s in range(count):
        weight = exponential(scores[s] - most) if scores[s] > _NEVER else np.float32(0)
        scores[s] = weight
        added += weight
    sums[r] += added


@compiled
def _largest(scores: Floats, count: int, least: Any) -> Any:
    """Return the largest of some scores, a multiple of 16, or `least` if that is larger."""
    most = all_of(least)
    for s in range(0, count, LANES):
        most = larger(load(scores, s), most)
    return greatest(most)


@compiled
def _mix(none: Any, values: Any, start: int, end: int, room: Any) -> None:
    """Add the weighted values to what the queries have mixed so far."""
    padded = room.padded
    scores, mixed = (
        floats(room.scores_at, (QUERIES, STRETCH)),
        floats(room.mixed_at, (QUERIES, padded)),
    )
    for d in range(0, padded, WIDTH):
        # two sums of each, so that neither waits for itself
        so_far, more = rows_from(none, mixed, d, padded), none
        for s in range(0, (end - start) // 2 * 2, 2):
            so_far = outer(so_far, scores, s, STRETCH, values, (start + s) * padded + d)
            more = outer(more, scores, s + 1, STRETCH, values, (start + s + 1) * padded + d)
        if (end - start) % 2:
            so_far = outer(so_far, scores, end - start - 1, STRETCH, values, (end - 1) * padded + d)
        rows_to(plus(so_far, more), mixed, d, padded)


@compiled
def merged(counters: Any, size: Any, phase: Any, parts: Any, z: Any, room: Any) -> Any:
    """Put the parts of each query together, if there are several: z (t, h · d).

    A task is a token's queries.
    """
    if parts == 1:
        return phase
    count, heads, d = len(z), room.heads, room.head_size
    part_mixed = floats(room.part_mixed_at, (room.rows, room.padded))
    part_largest, part_sums = (
        floats(room.part_largest_at, (room.rows,)),
        floats(room.part_sums_at, (room.rows,)),
    )
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        for head in range(heads):
            row, most, whole = t * heads + head, _NEVER, np.float32(0)
            for part in range(parts):
                most = max(most, part_largest[part * count * heads + row])
            out = z[t, head * d : (head + 1) * d]
            for i in range(d):
                out[i] = 0
            for part in range(parts):
                place = part * count * heads + row
                share, mixed = exponential(part_largest[place] - most), part_mixed[place]
                whole += share * part_sums[place]
                for i in range(d):
                    out[i] += share * mixed[i]
            for i in range(d):
                out[i] /= whole
    return meet(counters, size, phase)
