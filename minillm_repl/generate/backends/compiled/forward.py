"""One pass through any of the models, top to bottom, by all threads of a team at once.

The arithmetic is that of model/llama.py and model/gpt.py; what a model has not (a bias, a gate, a
norm) has no address in the table of weights. Each step is a phase: its tasks are claimed by whoever
is free, and the next begins when all are done. Shapes in comments: t = new tokens, w = width, h =
heads, g = heads with keys, d = head_size.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import cfunc, types
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.attention import attention, merged
from minillm_repl.generate.backends.compiled.compiling import OPTIONS, compiled
from minillm_repl.generate.backends.compiled.lanes import WHOLE, array_at, floats
from minillm_repl.generate.backends.compiled.matrices import LIKE, product, row_of
from minillm_repl.generate.backends.compiled.pointwise import bend, normalise, norms, rotate
from minillm_repl.generate.backends.compiled.room import BLOCK, ROOM
from minillm_repl.generate.backends.compiled.tasks import claim, meet
from minillm_repl.generate.backends.compiled.weights import (
    COLUMNS,
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

_ADDRESSES, _ROOMS = np.empty(0, np.uint64), np.empty(0, ROOM)  # for their kinds


class Stream(NamedTuple):
    """A pass's numbers; t = new tokens, w = width, h = heads, g = key heads, d = head_size."""

    x: Floats  # (t, w), the residual stream
    normed: Floats  # (t, w)
    normed2: Floats  # (t, w)
    added: Floats  # (t, w)
    qkv: Floats  # (t, (h + 2g) · d)
    z: Floats  # (t, h · d)
    up: Floats  # (t, hidden), or twice that with gates
    bent: Floats  # (t, hidden); the same as `up` without gates


def compile_for(kind: str, outside: str) -> Any:
    """Return the compiled pass for matrices of some kind, and others outside the layers.

    The kinds are those of matrices.py. It is called as Team.run says, with the address of the token
    ids, how many they are, at which position they begin, in how many parts the cache is gone
    through (more than one only for a single token), and the address of the threads' rooms.
    """
    like, like_outside = LIKE[kind], LIKE[outside]

    def run(counters, size, me, ids, count, start, parts, rooms):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        _forward(
            counters,
            size,
            array_at(ids, WHOLE, (count,)),
            start,
            parts,
            array_at(rooms, _ROOMS, (size,))[me],
            like,
            like_outside,
        )

    return cfunc(types.void(*[types.int64] * 8), **OPTIONS)(run)


@compiled
def _forward(
    counters: Any,
    size: Any,
    ids: Any,
    start: Any,
    parts: Any,
    room: Any,
    like: Any,
    like_outside: Any,
) -> None:
    """Read `ids` at positions from `start`, fill the cache, and leave the logits after the last
    in the room.
    """
    layers, d, count, nothing = room.layers, room.head_size, len(ids), floats(room.x_at, (0, 1))
    # Keys (layer, g, blocks · d · 32) and values (layer, g, positions · padded d) are the cache.
    keys = floats(room.keys_at, (layers, room.kv_heads, room.positions * d))
    values = floats(room.values_at, (layers, room.kv_heads, room.positions * room.padded))
    cos, sin = (
        floats(room.cos_at, (room.positions, room.angles)),
        floats(room.sin_at, (room.positions, room.angles)),
    )
    windows = array_at(room.windows_at, WHOLE, (layers,))
    addresses = array_at(room.weights_at, _ADDRESSES, (layers + 1, COLUMNS))
    stream, eps, outside = _stream(room, count), room.eps, addresses[layers]
    phase = _embed(counters, size, 0, ids, start, outside, like_outside, stream.x)
    for layer in range(layers):
        at, its_keys, its_values = addresses[layer], keys[layer], values[layer]
        phase = norms(counters, size, phase, at[NORM1:], eps, stream.x, stream.normed)
        if room.parallel:
            phase = norms(counters, size, phase, at[NORM2:], eps, stream.x, stream.normed2)
        phase = product(
            counters, size, phase, at[QKV:], like, stream.normed, stream.qkv, nothing, room
        )
        phase = _remember(
            counters, size, phase, at, start, cos, sin, its_keys, its_values, stream.qkv, room
        )
        # only the last position's logits are asked for: the others have done their work
        if layer == layers - 1:
            start += count - 1
            stream = _last(stream)
        phase = attention(
            counters,
            size,
            phase,
            start,
            parts,
            windows[layer],
            its_keys,
            its_values,
            stream.qkv,
            stream.z,
            room,
        )
        phase = merged(counters, size, phase, parts, stream.z, room)
        phase = product(
            counters, size, phase, at[PROJ:], like, stream.z, stream.added, stream.x, room
        )
        if not room.parallel:
            phase = norms(counters, size, phase, at[NORM2:], eps, stream.x, stream.normed2)
        phase = product(
            counters, size, phase, at[UP:], like, stream.normed2, stream.up, nothing, room
        )
        phase = bend(counters, size, phase, room.activation, stream.up, stream.bent)
        phase = product(
            counters, size, phase, at[DOWN:], like, stream.bent, stream.added, stream.x, room
        )
    phase = norms(counters, size, phase, outside[NORM_F:], eps, stream.x, stream.normed)
    logits = floats(room.logits_at, (1, room.vocabulary))
    product(
        counters, size, phase, outside[HEAD:], like_outside, stream.normed, logits, nothing, room
    )


@compiled
def _stream(room: Any, count: Any) -> Any:
    width, heads, d = room.width, room.heads, room.head_size
    return Stream(
        floats(room.x_at, (count, width)),
        floats(room.normed_at, (count, width)),
        floats(room.normed2_at, (count, width)),
        floats(room.added_at, (count, width)),
        floats(room.qkv_at, (count, (heads + 2 * room.kv_heads) * d)),
        floats(room.z_at, (count, heads * d)),
        floats(room.up_at, (count, room.up_width)),
        floats(room.bent_at, (count, room.hidden)),
    )


@compiled
def _last(s: Any) -> Any:
    """Return the last token's part of a stream."""
    return Stream(
        s.x[-1:],
        s.normed[-1:],
        s.normed2[-1:],
        s.added[-1:],
        s.qkv[-1:],
        s.z[-1:],
        s.up[-1:],
        s.bent[-1:],
    )


@compiled
def _embed(
    counters: Any, size: Any, phase: Any, ids: Any, start: Any, at: Any, like: Any, x: Any
) -> Any:
    """Start the residual stream: each token's row, and its position's where those are learned."""
    count, width = x.shape
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        row_of(at[TOKENS:], like, ids[t], x[t])
        if at[POSITIONS]:
            place = floats(at[POSITIONS], ((start + t + 1) * width,))
            for i in range(width):
                x[t, i] += place[(start + t) * width + i]
    return meet(counters, size, phase)


@compiled
def _remember(
    counters: Any, size: Any, phase: Any, at: Any, start: Any, cos: Any, sin: Any, keys: Any,
    values: Any, qkv: Any,
    room: Any,
) -> Any:  # fmt: skip
    """Normalise queries and keys, turn them to their position, and cache keys and values.

    A task is a head of the queries, the keys or the values.
    """
    heads, kv_heads, d, padded, eps = (
        room.heads,
        room.kv_heads,
        room.head_size,
        room.padded,
        room.eps,
    )
    q_norm, k_norm, no_bias = floats(at[Q_NORM], (d,)), floats(at[K_NORM], (d,)), floats(0, (0,))
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
                    normalise(row, norm, no_bias, eps, row)
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
                    kept[first + i * step] = qkv[t, head * d + i]
    return meet(counters, size, phase)
