"""Llama, and the families that differ from it in a window, a norm or a bias.

Names and defaults are those of the `transformers` library.
"""

from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint.families.common import (
    LLAMA_DEFAULTS,
    layer_types,
    llama_family,
    read_common,
    windows_by_layer,
    write_common,
)
from minillm_repl.checkpoint.families.fields import (
    ConfigFields,
)
from minillm_repl.checkpoint.families.rope import read_rope
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import printable


def _read_llama(fields: ConfigFields) -> LlamaConfig:
    bias = fields.boolean("attention_bias")
    return replace(
        read_common(fields), qkv_bias=bias, out_bias=bias, mlp_bias=fields.boolean("mlp_bias")
    )


def _read_mistral(fields: ConfigFields) -> LlamaConfig:
    # Mistral 7B v0.1 has a window in every layer; later models have null.
    window = fields.integer("sliding_window", 0)  # null: no window; missing: 4,096
    config = read_common(fields)
    return replace(
        config, sliding_windows=windows_by_layer(fields, window, [window > 0] * config.n_layers)
    )


def _read_qwen2(fields: ConfigFields) -> LlamaConfig:
    # Qwen 2 always has biases on q, k and v, and nowhere else.
    return replace(read_common(fields), qkv_bias=True, sliding_windows=_qwen_windows(fields))


def read_qwen3(fields: ConfigFields) -> LlamaConfig:
    """Return the config of a Qwen 3. Raises UserError."""
    bias = fields.boolean("attention_bias")
    return replace(
        read_common(fields),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,  # no field declares it: it is part of the architecture
        sliding_windows=_qwen_windows(fields),
    )


def _read_smollm3(fields: ConfigFields) -> LlamaConfig:
    config, bias = read_common(fields), fields.boolean("attention_bias")
    rope_layers = _rope_layers(fields, config.n_layers)
    window = fields.integer("sliding_window", 0) if fields.boolean("use_sliding_window") else 0
    usual = [window > 0 and not has_rope for has_rope in rope_layers]
    return replace(
        config,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.boolean("mlp_bias"),
        rope_layers=() if all(rope_layers) else rope_layers,
        sliding_windows=windows_by_layer(fields, window, usual),
    )


def _rope_layers(fields: ConfigFields, n_layers: int) -> tuple[bool, ...]:
    """Return whether each layer has RoPE: `no_rope_layers` says 1 for those that have it."""
    flags = fields.get("no_rope_layers")
    if flags is None:
        interval = max(1, fields.integer("no_rope_layer_interval"))
        return tuple((layer + 1) % interval != 0 for layer in range(n_layers))
    if (
        not isinstance(flags, list)
        or len(flags) < n_layers
        or any(flag not in (0, 1) for flag in flags)
    ):
        raise UserError(
            _(
                "{name} must be {wanted}, not {value:.40}",
                name="no_rope_layers",
                wanted=_("{layers} times 0 or 1", layers=n_layers),
                value=printable(flags),
            )
        )
    return tuple(map(bool, flags[:n_layers]))


def _write_smollm3(config: LlamaConfig) -> dict[str, Any]:
    rope_layers = config.rope_layers or (True,) * config.n_layers
    return {
        **write_common(config),
        "no_rope_layers": [int(has_rope) for has_rope in rope_layers],
        "layer_types": layer_types(config),
    }


def _read_phi3(fields: ConfigFields) -> LlamaConfig:
    rope = read_rope(fields, rotary_pct_key="partial_rotary_factor")
    config = read_common(fields, rope)
    window = fields.integer("sliding_window", 0)
    windows = windows_by_layer(fields, window, [window > 0] * config.n_layers)
    return replace(config, sliding_windows=windows)


def _write_phi3(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_common(config),
        "partial_rotary_factor": config.rope.rotary_pct,
        # The library takes 4,096 where this is missing, whatever is inside rope_scaling.
        "original_max_position_embeddings": config.rope.original_max_position_embeddings,
    }


def _qwen_windows(fields: ConfigFields) -> tuple[int, ...]:
    """Return the window of each layer: the layers from `max_window_layers` on may have one."""
    window = fields.integer("sliding_window", 0) if fields.boolean("use_sliding_window") else 0
    first = fields.integer("max_window_layers")
    n_layers = fields.integer("num_hidden_layers")
    usual = [window > 0 and layer >= first for layer in range(n_layers)]
    return windows_by_layer(fields, window, usual)


# The defaults of each config class in `transformers`, for fields that a config.json leaves out.
_MISTRAL_DEFAULTS = LLAMA_DEFAULTS | {
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "sliding_window": 4_096,
}
_QWEN2_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "intermediate_size": 22_016,
    "use_sliding_window": False,
    "sliding_window": 4_096,
    "max_window_layers": 28,
}
QWEN3_DEFAULTS = _QWEN2_DEFAULTS | {"head_dim": 128}  # not d_model / n_heads


_SMOLLM3_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 128_256,
    "max_position_embeddings": 32_768,
    "hidden_size": 2_048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "rope_theta": 2e6,
    "use_sliding_window": False,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
_PHI3_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 32_064,
    "max_position_embeddings": 4_096,
    "hidden_size": 3_072,
    "intermediate_size": 8_192,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 1.0,
}


LLAMA = llama_family("llama", "Llama", "LlamaForCausalLM", _read_llama, LLAMA_DEFAULTS)
MISTRAL = llama_family("mistral", "Mistral", "MistralForCausalLM", _read_mistral, _MISTRAL_DEFAULTS)
QWEN2 = llama_family("qwen2", "Qwen 2", "Qwen2ForCausalLM", _read_qwen2, _QWEN2_DEFAULTS)
QWEN3 = llama_family("qwen3", "Qwen 3", "Qwen3ForCausalLM", read_qwen3, QWEN3_DEFAULTS)
SMOLLM3 = llama_family(
    "smollm3", "SmolLM3", "SmolLM3ForCausalLM", _read_smollm3, _SMOLLM3_DEFAULTS, _write_smollm3
)
# Phi-3's files have q, k and v in one matrix as here, and gate and up in one.
PHI3 = llama_family(
    "phi3",
    "Phi-3",
    "Phi3ForCausalLM",
    _read_phi3,
    _PHI3_DEFAULTS,
    _write_phi3,
    {
        "attention.qkv": ("model.layers.{}.self_attn.qkv_proj",),
        "mlp.gate_up": ("model.layers.{}.mlp.gate_up_proj",),
    },
)
