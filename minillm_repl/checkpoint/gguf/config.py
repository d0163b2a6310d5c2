"""The metadata of a GGUF file as the config of a model."""

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minillm_repl.checkpoint.families import find_family
from minillm_repl.checkpoint.gguf.architectures import (
    EMBEDDING,
    HEAD,
    ROPE_FACTORS,
    Architecture,
    find_architecture,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig, LlamaConfig
from minillm_repl.model.config_base import Rope
from minillm_repl.safetext import safe_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The largest Gemmas scale scores by the width of a head that d_model would have; no key says so.
_WIDE_GEMMAS = {"gemma2": 46, "gemma3": 62}  # by their layers, as llama.cpp tells them
# The field for the share of a head that RoPE rotates, where it may be less than the whole.
_ROTARY_PCT = {"gptneox": "rotary_pct", "phi3": "partial_rotary_factor"}


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
    fields |= _derived_fields(metadata, architecture)
    config = find_family(architecture.model_type).parse_config(fields)
    _check_supported(metadata, architecture, config)
    if not isinstance(config, LlamaConfig):
        return config
    # Granite's switch for RoPE is this key, in llama.cpp too.
    if metadata.get(f"{architecture.name}.rope.scaling.finetuned") is False:
        config = replace(config, rope_layers=(False,) * config.n_layers)
    # No key declares biases; the file has them or not.
    return replace(
        config,
        qkv_bias="blk.0.attn_q.bias" in shapes or "blk.0.attn_qkv.bias" in shapes,
        out_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_down.bias" in shapes,
    )


def _derived_fields(metadata: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Return the fields that no key has as they are."""
    name = architecture.name
    fields = dict[str, Any]()
    # A key of this program's own: llama.cpp has no GELU but the tanh approximation.
    if name == "gpt2" and metadata.get("minillm.activation") == "gelu":
        fields["activation_function"] = "gelu"
    width, heads = (
        _positive(metadata, f"{name}.{key}") for key in ("embedding_length", "attention.head_count")
    )
    if name in _ROTARY_PCT:
        rotary = _positive(metadata, f"{name}.rope.dimension_count")
        fields[_ROTARY_PCT[name]] = rotary * heads / width
    if name == "lfm2":
        fields |= _convolutions(metadata.get("lfm2.attention.head_count_kv"))
    if name in _WIDE_GEMMAS:
        is_wide = metadata.get(f"{name}.block_count") == _WIDE_GEMMAS[name]
        usual = metadata.get(f"{name}.attention.key_length", width // heads)
        fields["query_pre_attn_scalar"] = width // heads if is_wide else usual
    return fields


def _convolutions(kv_heads: Any) -> dict[str, Any]:
    """Return which layers have attention: a file has the KV heads of each layer, or 0."""
    if not isinstance(kv_heads, list) or not all(type(each) is int for each in kv_heads):
        return {}
    return {
        "num_key_value_heads": max(kv_heads, default=0),
        "layer_types": ["full_attention" if each else "conv" for each in kv_heads],
    }


def _positive(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key)
    if type(value) is not int or value <= 0:
        raise UserError(_("{key} must be a whole number above 0", key=key))
    return value


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


def _check_supported(
    metadata: Mapping[str, Any], architecture: Architecture, config: AnyConfig
) -> None:
    """Raise UserError for what these models do not have."""
    name = architecture.name
    usual = {"attention.value_length": config.head_dim, "expert_count": config.n_experts}
    if isinstance(config, LlamaConfig) and name not in _ROTARY_PCT:
        usual["rope.dimension_count"] = config.head_dim
    if name == "olmo2":
        usual["attention.sliding_window"] = 0  # OLMo 3, whose pattern of windows no key has
    if name == "olmoe":
        usual["attention.clamp_kqv"] = 0  # llama.cpp does not do it
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


def with_rope_factors(config: AnyConfig, factors: "NDArray[np.float32] | None") -> AnyConfig:
    """Return a config whose frequencies are divided by the factors of a file, (head_dim / 2,).

    A file has the factors, and not the settings that they come from. Raises UserError for factors
    that are not of a scaling known here.
    """
    import numpy as np  # not at the start

    if factors is None or config.rope is None:
        return config
    half = config.head_dim // 2
    if factors.shape != (half,) or not np.isfinite(factors).all() or factors.min() <= 0:
        raise UserError(_("{tensor} does not fit the model", tensor=ROPE_FACTORS))
    if (factors == 1).all():
        return config
    # Llama 3.1 and its successors: only the factor differs between them.
    found = Rope(theta=config.rope.theta, scaling="llama3", factor=float(factors.max()))
    if not np.allclose(factors, llama3_factors(found, config.head_dim), rtol=1e-4):
        raise UserError(
            _("{tensor} scales RoPE in a way that is not supported", tensor=ROPE_FACTORS)
        )
    return replace(config, rope=found)
