"""Gemma 2 and 3: norms before and after attention and MLP, two kinds of layers, caps.

Names and defaults are those of the `transformers` library. Of a Gemma 3 that reads images too, the
text model opens.
"""

from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint.families.common import (
    LLAMA_DEFAULTS,
    layer_types,
    llama_family,
    read_common,
    windows_by_layer,
    with_ropes,
    write_common,
)
from minillm_repl.checkpoint.families.fields import ConfigFields, activation_name
from minillm_repl.checkpoint.families.rope import read_rope, read_ropes, rope_by_layer_type
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import Rope


def _read_gemma(fields: ConfigFields, full: Rope, sliding: Rope, pattern: int) -> LlamaConfig:
    fields.require("use_bidirectional_attention", None, False)
    bias = fields.boolean("attention_bias")
    config = read_common(fields, full, activation="hidden_activation")
    usual = [(layer + 1) % pattern != 0 for layer in range(config.n_layers)]
    config = replace(
        config,
        qkv_bias=bias,
        out_bias=bias,
        norm_placement="both",
        norm_plus_one=True,
        embedding_multiplier=config.d_model**0.5,
        attention_multiplier=fields.positive("query_pre_attn_scalar") ** -0.5,
        attention_softcap=fields.number("attn_logit_softcapping", 0.0),
        logit_softcap=fields.number("final_logit_softcapping", 0.0),
        sliding_windows=windows_by_layer(fields, fields.integer("sliding_window", 0), usual),
    )
    return with_ropes(config, full, sliding)


def _read_gemma2(fields: ConfigFields) -> LlamaConfig:
    rope = read_rope(fields)
    return _read_gemma(fields, rope, rope, pattern=2)


def _read_gemma3(fields: ConfigFields) -> LlamaConfig:
    full, sliding = read_ropes(fields, 1e6, 1e4, "rope_local_base_freq")
    pattern = fields.integer("sliding_window_pattern", 6)
    # The library caps no scores in a Gemma 3, whatever the config says.
    config = _read_gemma(fields, full, sliding, max(1, pattern))
    return replace(config, qk_norm=True, attention_softcap=0.0)


def _write_gemma2(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_common(config),
        # The same function as gelu_new; the last bit of its values is another.
        "hidden_activation": {"gelu-tanh": "gelu_pytorch_tanh"}.get(
            config.activation, activation_name(config.activation)
        ),
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "layer_types": layer_types(config),
    }


def _write_gemma3(config: LlamaConfig) -> dict[str, Any]:
    return {
        **_write_gemma2(config),
        "rope_scaling": None,
        "rope_parameters": rope_by_layer_type(config.rope, config.sliding_rope or config.rope),
    }


_NORMS = {
    "post_norm1": ("model.layers.{}.post_attention_layernorm",),
    "norm2": ("model.layers.{}.pre_feedforward_layernorm",),
    "post_norm2": ("model.layers.{}.post_feedforward_layernorm",),
}
_GEMMA2_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 256_000,
    "max_position_embeddings": 8_192,
    "hidden_size": 2_304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9_216,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4_096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3_DEFAULTS = _GEMMA2_DEFAULTS | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
GEMMA2 = llama_family(
    "gemma2", "Gemma 2", "Gemma2ForCausalLM", _read_gemma2, _GEMMA2_DEFAULTS, _write_gemma2, _NORMS
)
GEMMA3 = llama_family(
    "gemma3_text",
    "Gemma 3",
    "Gemma3ForCausalLM",
    _read_gemma3,
    _GEMMA3_DEFAULTS,
    _write_gemma3,
    _NORMS,
)
GEMMA3_IMAGES = replace(
    GEMMA3,
    model_type="gemma3",
    inner_config="text_config",
    ignored=r"(^|\.)(vision_tower|multi_modal_projector)\.",
)
