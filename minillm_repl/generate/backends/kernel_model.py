"""A model as the C library reads it: its sizes, and where each of its weights lies in memory.

A matrix stays where the checkpoint has it, in the kind of numbers it has. Made anew are those of a
small model, which are transposed, and quantised ones. In 4 bits are those of the layers; the
embedding and the output matrix, which lose more by it, are then in 8.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.kernels.structs import KINDS, PANELS, Expert, Layer, Matrix, Model, Norm
from minillm_repl.model.bfloat16 import dtype_name, to_float32
from minillm_repl.model.config import CANON_TOKENS, AnyConfig, GPTConfig, is_convolution
from minillm_repl.model.config_base import ACTIVATIONS, Rope
from minillm_repl.model.quantised import BlockMatrix, QuantisedMatrix, quantise

Array = NDArray[Any]
Floats = NDArray[np.float32]
Weights = Array | QuantisedMatrix | BlockMatrix
Tensors = Mapping[str, Weights]

_POSITIONS = "position_embedding.weight"  # of which only rows are read
_OUTSIDE_BITS = 8  # of quantised matrices outside the layers


def quantise_tensors(
    tensors: Mapping[str, Array | BlockMatrix], bits: int, threads: int
) -> dict[str, Weights]:
    """Return a model's tensors with the matrices in 8 or 4 bits."""
    return {
        name: array
        if array.ndim == 1 or name == _POSITIONS or is_convolution(name)
        else quantise(array[:], bits if name.startswith("blocks.") else _OUTSIDE_BITS, threads)
        for name, array in tensors.items()
    }


@dataclass(frozen=True)
class KernelModel:
    """The structure of a model, and the arrays whose addresses are in it."""

    model: Model
    arrays: list[Any] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Memory that the weights take."""
        return sum(array.nbytes for array in self.arrays if isinstance(array, np.ndarray))


def lay_out(
    config: AnyConfig, tensors: Tensors, *, threads: int, panel_rows: int = 0
) -> KernelModel:
    """Return the structure for a model's tensors.

    Matrices stay as they are, or, with `panel_rows`, are transposed with this many rows side by
    side. All the rest is in float32.
    """
    builder = _Builder(tensors, panel_rows, plus_one=config.norm_plus_one)
    layers = (Layer * config.n_layers)(
        *(builder.layer(config, layer) for layer in range(config.n_layers))
    )
    builder.arrays.append(layers)
    embedding = builder.matrix("token_embedding")
    model = Model(
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        d_mlp=config.d_mlp,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        activation=ACTIVATIONS.index(config.activation),
        parallel_residual=config.parallel_residual,
        qk_norm_per_head=config.qk_norm_per_head,
        embedding_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        attention_scale=config.attention_scale,
        logit_scale=1 / config.logits_scaling,
        attention_softcap=config.attention_softcap,
        logit_softcap=config.logit_softcap,
        qkv_clip=config.qkv_clip,
        **_expert_sizes(config),
        norm_eps=config.norm_eps,
        n_threads=threads,
        embedding=embedding,
        head=embedding if config.tie_word_embeddings else builder.matrix("lm_head"),
        positions=builder.vector(_POSITIONS),
        norm=builder.norm("norm_f", "ln_f"),
        layers=layers,
    )
    return KernelModel(model, builder.arrays)


def _expert_sizes(config: AnyConfig) -> dict[str, int]:
    if isinstance(config, GPTConfig):
        return {}
    names = ("n_experts", "n_experts_per_tok", "d_expert", "norm_topk_prob")
    return {name: getattr(config, name) for name in names}


class _Builder:
    """Notes the addresses of tensors, and keeps the arrays that are there."""

    def __init__(self, tensors: Tensors, panel_rows: int, *, plus_one: bool) -> None:
        self._tensors, self._panel_rows, self._plus_one = tensors, panel_rows, plus_one
        self.arrays: list[Any] = []

    def layer(self, config: AnyConfig, index: int) -> Layer:
        """Return the structure of a transformer block."""
        block, rope = f"blocks.{index}.", config.layer_ropes()[index]
        layer = Layer(
            norm1=self.norm(block + "norm1", block + "ln1"),
            norm2=self.norm(block + "norm2", block + "ln2"),
            post_norm1=self.norm(block + "post_norm1"),
            post_norm2=self.norm(block + "post_norm2"),
            q_norm=self.norm(block + "attention.q_norm"),
            k_norm=self.norm(block + "attention.k_norm"),
            canon1=self.vector(block + "canon1.weight"),
            canon2=self.vector(block + "canon2.weight"),
            window=config.sliding_windows[index] if config.sliding_windows else 0,
            rope=-1 if rope is None else distinct_ropes(config).index(rope),
        )
        if config.is_conv(index):
            layer.taps = self._taps(block + "conv.taps.weight")
            layer.gates = self.matrix(block + "conv.gates")
            layer.proj = self.matrix(block + "conv.proj")
        else:
            layer.qkv = (Matrix * 3)(*self.matrices(block + "attention.qkv"))
            layer.proj = self.matrix(block + "attention.proj")
        if config.is_routed(index):
            layer.router = self.matrix(block + "mlp.router")
            experts = (Expert * config.n_experts)(
                *(
                    Expert(*self.gated_mlp(f"{block}mlp.experts.{expert}."))
                    for expert in range(config.n_experts)
                )
            )
            self.arrays.append(experts)
            layer.experts = experts
        elif config.has_gated_mlp:
            layer.gate, layer.up, layer.down = self.gated_mlp(block + "mlp.")
        else:
            layer.up, layer.down = self.matrix(block + "mlp.up"), self.matrix(block + "mlp.down")
        return layer

    def gated_mlp(self, name: str) -> tuple[Matrix, Matrix, Matrix]:
        """Return the gate, the up-projection and the down-projection of an MLP."""
        # The rows of the gate come first, in one matrix with those of up.
        half = self._tensors[name + "gate_up.weight"].shape[0] // 2
        return (
            self.matrix(name + "gate_up", slice(half)),
            self.matrix(name + "gate_up", slice(half, None)),
            self.matrix(name + "down"),
        )

    def norm(self, *names: str) -> Norm:
        """Return the norm that has one of some names; an empty one if there is none."""
        for name in names:
            if name + ".weight" in self._tensors:
                return Norm(self._scale(name + ".weight"), self.vector(name + ".bias"))
        return Norm()

    def _taps(self, name: str) -> int:
        """Return the address of the weights of a convolution, with zeros for the tokens before the
        first that it mixes: (CANON_TOKENS, d_model).
        """
        array = self._tensors[name]
        assert not isinstance(array, QuantisedMatrix | BlockMatrix)
        taps = to_float32(array)
        return self._keep(np.pad(taps, ((CANON_TOKENS - len(taps), 0), (0, 0))))

    def _scale(self, name: str) -> int:
        """Return the address of what a norm multiplies by, in float32."""
        array = self._tensors[name]
        assert not isinstance(array, QuantisedMatrix | BlockMatrix)
        return self._keep(
            to_float32(array) + np.float32(1) if self._plus_one else to_float32(array)
        )

    def vector(self, name: str, rows: slice = slice(None)) -> int | None:
        """Return the address of a tensor in float32, or None if there is none."""
        array = self._tensors.get(name)
        if array is None:
            return None
        assert isinstance(array, np.ndarray)
        return self._keep(to_float32(array[rows]))

    def matrix(self, name: str, rows: slice = slice(None)) -> Matrix:
        """Return some rows of the matrix of a layer, and its bias."""
        (matrix,) = self.matrices(name, rows)  # Only q, k and v may be of several kinds.
        return matrix

    def matrices(self, name: str, rows: slice = slice(None)) -> list[Matrix]:
        """Return some rows of the matrix of a layer, which may be several, and their biases."""
        weights, start = self._tensors[name + ".weight"], rows.start or 0
        first, last, _step = rows.indices(weights.shape[0])
        found = []
        for part, some in (
            weights.split(first, last)
            if isinstance(weights, BlockMatrix)
            else [(weights, slice(first, last))]
        ):
            count = some.stop - some.start
            bias = self.vector(name + ".bias", slice(start, start + count))
            found.append(self._matrix(part, some, bias))
            start += count  # the bias is one vector, whatever the parts of the matrix
        return found

    def _matrix(self, weights: Array | QuantisedMatrix, rows: slice, bias: int | None) -> Matrix:
        shape = {"bias": bias, "rows": rows.stop - rows.start, "inputs": weights.shape[1]}
        if isinstance(weights, QuantisedMatrix):
            part = weights.take_rows(rows.start, rows.stop)
            packed, scales = self._keep(part.packed_weights), self._keep(part.scales)
            return Matrix(packed, scales, kind=KINDS[part.kind.name], **shape)
        array = weights[rows]
        if self._panel_rows:
            return Matrix(self._keep(in_panels(array, self._panel_rows)), kind=PANELS, **shape)
        return Matrix(self._keep(array), kind=KINDS[dtype_name(array.dtype)], **shape)

    def _keep(self, array: Array) -> int:
        # C has only the address: the array must live as long as the model.
        self.arrays.append(np.ascontiguousarray(array))
        return int(self.arrays[-1].ctypes.data)


def in_panels(array: Array, panel_rows: int) -> NDArray[np.float32]:
    """Return a matrix (rows, inputs) as (panels, inputs, panel_rows), filled up with zeros."""
    rows, inputs = array.shape
    panels = -(-rows // panel_rows)
    padded = np.zeros((panels * panel_rows, inputs), np.float32)
    padded[:rows] = to_float32(array)
    # (panels · panel_rows, inputs) -> (panels, inputs, panel_rows)
    transposed = padded.reshape(panels, panel_rows, inputs).transpose(0, 2, 1)
    return np.ascontiguousarray(transposed)


# -- rotary positions without torch: the same numbers as model/rope.py, as a test checks


def distinct_ropes(config: AnyConfig) -> list[Rope]:
    """Return the RoPEs of a model's layers, each once, in the order of the layers."""
    return [rope for rope in dict.fromkeys(config.layer_ropes()) if rope is not None]


def rotary_angles(config: AnyConfig, positions: int) -> tuple[Floats, Floats]:
    """Return cosine and sine of each pair's angle, each (ropes, positions, pairs).

    They are of the first positions, for each of the distinct RoPEs. A model whose positions are
    learned has no pairs.
    """
    ropes = distinct_ropes(config)
    if not ropes:
        return np.empty((1, positions, 0), np.float32), np.empty((1, positions, 0), np.float32)
    places = np.arange(positions, dtype=np.float32)[:, None]  # (positions, 1)
    # of each RoPE (positions, pairs), in radians
    angles = [places * _inv_freq(rope, config.head_dim) for rope in ropes]
    factors = [np.float32(rope.attention_factor) for rope in ropes]
    cos = [np.cos(each) * factor for each, factor in zip(angles, factors, strict=True)]
    sin = [np.sin(each) * factor for each, factor in zip(angles, factors, strict=True)]
    return np.stack(cos), np.stack(sin)


def _inv_freq(rope: Rope, head_dim: int) -> Floats:
    """Return the angle of each pair per position, in radians: (pairs,)."""
    rotary_dim = int(head_dim * rope.rotary_pct)
    evens = np.arange(0, rotary_dim, 2).astype(np.float32)  # (pairs,)
    inv_freq: Floats = np.float32(1) / np.float32(rope.theta) ** (evens / np.float32(rotary_dim))
    factor = np.float32(rope.factor)
    if rope.scaling == "linear":
        inv_freq = inv_freq / factor
    if rope.scaling == "llama3":  # slow pairs are slowed down, fast ones stay
        rotations = np.float32(rope.original_max_position_embeddings) / (
            np.float32(2 * math.pi) / inv_freq
        )
        width = np.float32(rope.high_freq_factor - rope.low_freq_factor)
        smooth = np.clip((rotations - np.float32(rope.low_freq_factor)) / width, 0, 1)
        inv_freq = ((1 - smooth) * inv_freq / factor + smooth * inv_freq).astype(np.float32)
    if rope.scaling == "longrope":  # a factor for each pair, found by a search
        factors: Floats = np.array(rope.short_factors, np.float32)
        inv_freq = inv_freq / factors
    if rope.scaling == "yarn":  # between two pairs, a ramp from as it is to slowed down
        first, last = rope.yarn_range(rotary_dim)
        pairs = np.arange(rotary_dim // 2, dtype=np.float32)
        slowed = np.clip((pairs - np.float32(first)) / np.float32(last - first), 0, 1)
        inv_freq = (slowed * inv_freq / factor + (1 - slowed) * inv_freq).astype(np.float32)
    return inv_freq
