"""The architectures of GGUF as data: which family each is, its keys, and its names of tensors.

A file's metadata becomes the fields of a config.json, which the family reads; a config goes the
same way back. The weights become the model's by one table of names, because GGUF has the same
names in all architectures.
"""

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from minillm_repl.checkpoint import AS_IS, Layout, SourceTensor, WeightMap
from minillm_repl.checkpoint.families import find_family
from minillm_repl.checkpoint.families.family import split_shape
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig, LlamaConfig, Rope
from minillm_repl.safetext import safe_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ARCHITECTURE, TOKENS = "general.architecture", "tokenizer.ggml.tokens"
GGUF_TYPES = ("f16", "bf16", "q8_0", "q4_0")  # that are written here
EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of GGUF."""

    name: str  # general.architecture
    model_type: str  # of the family
    # From a field of config.json to the key of its value, without the architecture before it.
    keys: Mapping[str, str]
    # Keys that a file may leave out; llama.cpp and the family have the same defaults.
    optional: Collection[str] = ()
    # q and k have the two numbers of each rotated pair beside each other, not half a head apart.
    interleaved: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)  # fields that no key has


_OF_LLAMA = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta")
_NO_WINDOW = {"use_sliding_window": False, "sliding_window": None}

ARCHITECTURES = (
    Architecture(
        name="llama",
        model_type="llama",
        keys=_OF_LLAMA,
        optional=_OPTIONAL,
        interleaved=True,
        constants={"attention_bias": False, "mlp_bias": False, "rope_theta": 10_000.0},
    ),
    Architecture(
        name="qwen2",
        model_type="qwen2",
        keys=_OF_LLAMA,
        optional=_OPTIONAL,
        constants=_NO_WINDOW,
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        keys=_OF_LLAMA,
        optional=("num_key_value_heads", "rope_theta"),
        constants={**_NO_WINDOW, "attention_bias": False},
    ),
    Architecture(
        name="gpt2",
        model_type="gpt2",
        keys={
            "n_positions": "context_length",
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_inner": "feed_forward_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
    ),
    Architecture(
        name="gptneox",
        model_type="gpt_neox",
        keys={
            "max_position_embeddings": "context_length",
            "hidden_size": "embedding_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "intermediate_size": "feed_forward_length",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
            "rotary_emb_base": "rope.freq_base",
        },
        optional=("rotary_emb_base",),
    ),
)

# From our name to the names in a file, both without `.weight`. Several are stacked by rows; the
# first of several alternatives that a file has counts.
_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "token_embedding": (("token_embd",),),
    "position_embedding": (("position_embd",),),
    "norm1": (("blk.{}.attn_norm",),),
    "attention.qkv": (("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"), ("blk.{}.attn_qkv",)),
    "attention.q_norm": (("blk.{}.attn_q_norm",),),
    "attention.k_norm": (("blk.{}.attn_k_norm",),),
    "attention.proj": (("blk.{}.attn_output",),),
    "norm2": (("blk.{}.ffn_norm",),),
    "mlp.gate_up": (("blk.{}.ffn_gate", "blk.{}.ffn_up"), ("blk.{}.ffn_up",)),
    "mlp.up": (("blk.{}.ffn_up",),),
    "mlp.down": (("blk.{}.ffn_down",),),
    "norm_f": (("output_norm",),),
    "lm_head": (("output",),),
}
_NAMES |= {"ln1": _NAMES["norm1"], "ln2": _NAMES["norm2"], "ln_f": _NAMES["norm_f"]}


def find_architecture(metadata: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a file names. Raises UserError with the supported ones."""
    name = metadata.get(ARCHITECTURE)
    for each in ARCHITECTURES:
        if each.name == name:
            return each
    raise UserError(
        _(
            "unsupported architecture {name!r:.40}; supported: {names}",
            name=safe_line(str(name)),
            names=", ".join(each.name for each in ARCHITECTURES),
        )
    )


def parse_gguf_config(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> AnyConfig:
    """Return the config of a file with this metadata, and tensors of these shapes.

    Raises UserError.
    """
    architecture = find_architecture(metadata)
    fields = dict(architecture.constants)
    for name, key in architecture.keys.items():
        value = metadata.get(f"{architecture.name}.{key}")
        if value is not None:
            fields[name] = _shortest(value) if isinstance(value, float) else value
        elif name not in architecture.optional:
            raise UserError(_("it has no {key}", key=f"{architecture.name}.{key}"))
    embedding = shapes.get(EMBEDDING, ())
    if len(embedding) != 2:
        raise UserError(_("it has no matrix {tensor}", tensor=EMBEDDING))
    fields |= {"vocab_size": embedding[0], "tie_word_embeddings": HEAD not in shapes}
    fields |= _rope_fields(metadata, architecture.name)
    if architecture.name == "gptneox":
        fields["rotary_pct"] = _rotary_pct(metadata, architecture.name)
    # A key of this program's own: llama.cpp has no GELU but the tanh approximation.
    if metadata.get("minillm.activation") == "gelu" and architecture.model_type == "gpt2":
        fields["activation_function"] = "gelu"
    config = find_family(architecture.model_type).parse_config(fields)
    _check_heads(metadata, architecture.name, config)
    if not isinstance(config, LlamaConfig):
        return config
    # No key declares biases; the file has them or not.
    return replace(
        config,
        qkv_bias="blk.0.attn_q.bias" in shapes or "blk.0.attn_qkv.bias" in shapes,
        out_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_down.bias" in shapes,
    )


def _rope_fields(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the field of the scaling of RoPE, if there is any."""
    scaling = {
        key: metadata.get(f"{name}.rope.scaling.{key}")
        for key in ("type", "factor", "original_context_length")
    }
    # Older files have the factor alone, which means linear scaling.
    factor = scaling["factor"] or metadata.get(f"{name}.rope.scale_linear")
    kind = scaling["type"] or "linear"
    if kind == "none" or not factor:
        return {}
    described = {"rope_type": kind, "factor": factor}
    if scaling["original_context_length"]:
        described["original_max_position_embeddings"] = scaling["original_context_length"]
    return {"rope_scaling": described}


def _rotary_pct(metadata: Mapping[str, Any], name: str) -> float:
    """Return the share of each head's dimensions that RoPE rotates."""
    rotary = metadata.get(f"{name}.rope.dimension_count")
    width = metadata[f"{name}.embedding_length"]
    heads = metadata[f"{name}.attention.head_count"]
    if not all(type(each) is int and each > 0 for each in (rotary, width, heads)):
        raise UserError(_("it has no {key}", key=f"{name}.rope.dimension_count"))
    return float(rotary * heads / width)


def _check_heads(metadata: Mapping[str, Any], name: str, config: AnyConfig) -> None:
    """Raise UserError for values and rotations of a size that these models do not have."""
    usual = {"attention.value_length": config.head_dim, "expert_count": 0}
    if isinstance(config, LlamaConfig):
        usual["rope.dimension_count"] = config.head_dim
    for key, size in usual.items():
        if metadata.get(f"{name}.{key}", size) != size:
            raise UserError(
                _(
                    "{name} = {value} is not supported; supported: {names}",
                    name=f"{name}.{key}",
                    value=safe_line(str(metadata[f"{name}.{key}"]))[:40],
                    names=size,
                )
            )


def _shortest(value: float) -> float:
    """Return the decimal number that a float32 was made of: 1e-06, not 9.99999997e-07."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def gguf_weight_map(
    architecture: Architecture, config: AnyConfig, names: Collection[str] = ()
) -> WeightMap:
    """Return the weight map from a file with these tensor names to the model."""
    sources = dict[str, tuple[SourceTensor, ...]]()
    for name, shape in config.shapes():
        stem, _dot, ending = name.rpartition(".")  # ending: weight or bias
        block = _BLOCK.fullmatch(stem)
        key, layer = (block[2], block[1]) if block else (stem, "")
        alternatives = [
            [f"{each.format(layer)}.{ending}" for each in parts] for parts in _NAMES[key]
        ]
        usual = alternatives[-1 if config.arch == "gpt" else 0]
        theirs = next((parts for parts in alternatives if set(parts) <= set(names)), usual)
        layouts = [AS_IS] * len(theirs)
        if architecture.interleaved and len(theirs) == 3:
            layouts[:2] = [_interleaved(config.n_heads), _interleaved(config.n_kv_heads)]
        sources[name] = tuple(
            SourceTensor(*each)
            for each in zip(theirs, split_shape(config, len(theirs), shape), layouts, strict=True)
        )
    return WeightMap(sources, re.compile(re.escape(ROPE_FACTORS)))


def _interleaved(n_heads: int) -> Layout:
    """Return the layout of q or k whose pairs are beside each other in a file.

    It moves whole rows, so that rows of blocks go through it as rows of numbers do.
    """
    return Layout(
        lambda array: (
            array.reshape(n_heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        ),
        lambda array: (
            array.reshape(n_heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        ),
    )


def llama3_factors(rope: Rope, head_dim: int) -> "NDArray[np.float32]":
    """Return what the scaling `llama3` divides the frequency of each pair by: (head_dim / 2,)."""
    import numpy as np  # not at the start

    inv_freq = rope.theta ** -(np.arange(0, head_dim, 2) / head_dim)
    # Full rotations within the context that the model was first trained with.
    rotations = rope.original_max_position_embeddings * inv_freq / (2 * np.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = np.clip((rotations - low) / (high - low), 0, 1)  # 1: fast enough to stay
    factors = 1 / ((1 - smooth) / rope.factor + smooth)
    return np.asarray(factors, np.float32)
