"""The fast decoder: the same arithmetic as model/gpt.py, compiled by numba, without torch.

At this size the arithmetic of a token takes microseconds and torch's overhead per operation is most of the time
(docs/performance.md); compiled as one function it is several times faster, and a process that only chats never has to
import torch. tests/test_decoders.py holds it to the torch model.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.engine.compiled.compiling import compiled, entry
from minillm_repl.engine.decoder import piece_of
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig, GPTConfig

Floats = NDArray[np.float32]


class NumbaDecoder:
    """Runs a GPT on one CPU core. The first use on a machine compiles for some seconds; the result is kept on disk."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        if not self.runs(config):
            raise NotImplementedError(f"{config} is not the study note's kind of GPT")
        weights = {name: array.astype(np.float32, copy=False) for name, array in checkpoint.tensors.items()}
        layers = range(config.layers)

        def stack(name: str) -> Floats:
            return np.stack([weights[f"blocks.{layer}.{name}"] for layer in layers])

        def columns(name: str) -> Floats:  # (layer, in, out): the innermost loop runs over outputs, side by side
            return np.ascontiguousarray(stack(name + ".weight").transpose(0, 2, 1))

        self._weights = (
            np.ascontiguousarray(weights["token_embedding.weight"]),
            np.ascontiguousarray(weights["position_embedding.weight"]),
            np.stack([stack("ln1.weight"), stack("ln1.bias"), stack("ln2.weight"), stack("ln2.bias")]),
            columns("attention.qkv"),
            columns("attention.proj"),
            stack("attention.proj.bias"),
            columns("ff.up"),
            stack("ff.up.bias"),
            columns("ff.down"),
            stack("ff.down.bias"),
            np.stack([weights["ln_f.weight"], weights["ln_f.bias"]]),
            np.ascontiguousarray(weights["lm_head.weight"].T),
            np.ascontiguousarray(weights["lm_head.bias"]),
        )
        self._kv = np.zeros((config.layers, 2, config.context, config.width), np.float32)
        self._heads = config.heads
        self.ids: list[int] = []
        self.context, self.piece = config.context, piece_of(config.parameters)
        self.prefill([0])  # compile, or fetch the compiled code, now and not at the first word
        self.rewind(0)

    @staticmethod
    def runs(config: AnyConfig) -> bool:
        """Tell whether a model of this config can be run here: the study note's kind of GPT, of any size."""
        sizes = config.vocab, config.context, config.width, config.layers, config.heads
        return isinstance(config, GPTConfig) and config == GPTConfig(*sizes)

    @property
    def name(self) -> str:
        """What runs."""
        return _("numba on cpu")

    @property
    def why(self) -> str:
        """What it is good for."""
        return _("compiled for small models of the study note's kind, on one core")

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return self._kv.nbytes

    def prefill(self, ids: Sequence[int]) -> Floats:
        """Read tokens after those in the cache; return the logits after the last."""
        new = np.array(ids, dtype=np.int64)
        logits: Floats = _forward(new, len(self.ids), self._heads, self._kv, *self._weights)
        self.ids.extend(ids)
        return logits

    def decode(self, token: int) -> Floats:
        """Read one token; return the logits after it."""
        return self.prefill((token,))

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.ids[length:]


@entry
def _forward(  # type: ignore[no-untyped-def]  # noqa: ANN202 - numba infers the types below
    ids: NDArray[np.int64], start: int, heads: int, kv: Floats,
    token_table: Floats, position_table: Floats, norms: Floats, qkv_w: Floats, proj_w: Floats, proj_b: Floats,
    up_w: Floats, up_b: Floats, down_w: Floats, down_b: Floats, ln_f: Floats, head_w: Floats, head_b: Floats,
):  # fmt: skip
    """Read `ids` at positions from `start`; fill `kv` (layer, key|value, position, width); return the last logits."""
    count, (layers, _, _, width) = len(ids), kv.shape
    x = np.empty((count, width), np.float32)
    for t in range(count):
        for i in range(width):
            x[t, i] = token_table[ids[t], i] + position_table[start + t, i]
    normed, added = np.empty_like(x), np.empty_like(x)
    qkv = np.empty((count, 3 * width), np.float32)
    hidden = np.empty((count, up_w.shape[2]), np.float32)
    no_bias = np.zeros(3 * width, np.float32)
    for layer in range(layers):
        _layer_norm(x, norms[0, layer], norms[1, layer], normed)
        _linear(normed, qkv_w[layer], no_bias, qkv)
        for t in range(count):
            for i in range(width):
                kv[layer, 0, start + t, i] = qkv[t, width + i]
                kv[layer, 1, start + t, i] = qkv[t, 2 * width + i]
        # Only the last position's logits are asked for: in the last layer the others have done their work.
        first = count - 1 if layer == layers - 1 else 0
        x, normed, added, hidden = x[first:], normed[first:], added[first:], hidden[first:]
        _attend(qkv[first:], kv[layer], start + first, heads, normed)
        _linear(normed, proj_w[layer], proj_b[layer], added)
        _add(x, added)
        _layer_norm(x, norms[2, layer], norms[3, layer], normed)
        _linear(normed, up_w[layer], up_b[layer], hidden)
        _gelu(hidden)
        _linear(hidden, down_w[layer], down_b[layer], added)
        _add(x, added)
    _layer_norm(x, ln_f[0], ln_f[1], normed)
    logits = np.empty((1, len(head_b)), np.float32)
    _linear(normed, head_w, head_b, logits)
    return logits[0]


@compiled
def _attend(qkv: Floats, kv: Floats, start: int, heads: int, out: Floats) -> None:
    """Causal attention of each row of `qkv` (its first third: queries) over all positions up to its own."""
    width = out.shape[1]
    size = width // heads
    scale = np.float32(1 / math.sqrt(size))
    weight = np.empty(start + len(out), np.float32)
    for t in range(len(out)):
        seen = start + t + 1
        for head in range(heads):
            low, high = head * size, (head + 1) * size
            query, mixed = qkv[t, low:high], out[t, low:high]
            largest = np.float32(-np.inf)
            for s in range(seen):
                key = kv[0, s, low:high]
                score = np.float32(0)
                for d in range(size):
                    score += query[d] * key[d]
                weight[s] = score * scale
                largest = max(largest, weight[s])
            total = np.float32(0)
            for s in range(seen):
                weight[s] = np.exp(weight[s] - largest)
                total += weight[s]
            for d in range(size):
                mixed[d] = 0
            for s in range(seen):
                value, share = kv[1, s, low:high], weight[s] / total
                for d in range(size):
                    mixed[d] += share * value[d]


@compiled
def _linear(x: Floats, w: Floats, b: Floats, y: Floats) -> None:
    """Compute y = x @ w + b, with x (t, in), w (in, out), y (t, out).

    Four rows and four inputs at a time, so that a number fetched from memory is used four times.
    """
    rows, inputs = x.shape
    for t in range(rows):
        for n in range(len(b)):
            y[t, n] = b[n]
    blocked_rows, blocked_inputs = rows - rows % 4, inputs - inputs % 4
    for t in range(0, blocked_rows, 4):
        y0, y1, y2, y3 = y[t], y[t + 1], y[t + 2], y[t + 3]
        for k in range(0, blocked_inputs, 4):
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            a00, a01, a02, a03 = x[t, k], x[t, k + 1], x[t, k + 2], x[t, k + 3]
            a10, a11, a12, a13 = x[t + 1, k], x[t + 1, k + 1], x[t + 1, k + 2], x[t + 1, k + 3]
            a20, a21, a22, a23 = x[t + 2, k], x[t + 2, k + 1], x[t + 2, k + 2], x[t + 2, k + 3]
            a30, a31, a32, a33 = x[t + 3, k], x[t + 3, k + 1], x[t + 3, k + 2], x[t + 3, k + 3]
            for n in range(len(b)):
                p, q, r, s = w0[n], w1[n], w2[n], w3[n]
                y0[n] += a00 * p + a01 * q + a02 * r + a03 * s
                y1[n] += a10 * p + a11 * q + a12 * r + a13 * s
                y2[n] += a20 * p + a21 * q + a22 * r + a23 * s
                y3[n] += a30 * p + a31 * q + a32 * r + a33 * s
    for t in range(rows):
        yt = y[t]
        if t >= blocked_rows:
            for k in range(0, blocked_inputs, 4):
                w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
                a0, a1, a2, a3 = x[t, k], x[t, k + 1], x[t, k + 2], x[t, k + 3]
                for n in range(len(b)):
                    yt[n] += a0 * w0[n] + a1 * w1[n] + a2 * w2[n] + a3 * w3[n]
        for k in range(blocked_inputs, inputs):
            wk, a = w[k], x[t, k]
            for n in range(len(b)):
                yt[n] += a * wk[n]


@compiled
def _layer_norm(x: Floats, gain: Floats, bias: Floats, y: Floats) -> None:
    """Compute y = (x − mean) / √(variance + 1e-5) · gain + bias, row by row."""
    rows, width = x.shape
    for t in range(rows):
        total = np.float32(0)
        for i in range(width):
            total += x[t, i]
        mean = total / np.float32(width)
        squares = np.float32(0)
        for i in range(width):
            squares += (x[t, i] - mean) * (x[t, i] - mean)
        scale = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(1e-5))
        for i in range(width):
            y[t, i] = (x[t, i] - mean) * scale * gain[i] + bias[i]


@compiled
def _add(x: Floats, y: Floats) -> None:
    """Compute x = x + y, in place."""
    for t in range(len(x)):
        for i in range(x.shape[1]):
            x[t, i] += y[t, i]


@compiled
def _gelu(x: Floats) -> None:
    """Compute x = x · Φ(x), in place, Φ by the rational approximation of erf that Eigen uses, which vectorises.

    Within 7e-7 of the exact value; the library's erf takes thirty times as long.
    """
    rows, width = x.shape
    edge = np.float32(3.8325)  # beyond it erf is ±1 in float32
    for t in range(rows):
        row = x[t]
        for i in range(width):
            z = min(max(row[i] * np.float32(0.7071067811865476), -edge), edge)
            s = z * z
            p = s * np.float32(0.00022905065861350646) + np.float32(0.0034082910107109506)
            p = s * p + np.float32(0.050955695062380861)
            p = s * p + np.float32(0.18520832239976145)
            p = s * p + np.float32(1.128379143519084)
            q = s * np.float32(-1.1791602954361697e-7) + np.float32(0.000023547966471313185)
            q = s * q + np.float32(0.0010179625278914885)
            q = s * q + np.float32(0.014070470171167667)
            q = s * q + np.float32(0.11098505178285362)
            q = s * q + np.float32(0.49746925110067538)
            q = s * q + np.float32(1)
            row[i] = np.float32(0.5) * row[i] * (np.float32(1) + z * p / q)
