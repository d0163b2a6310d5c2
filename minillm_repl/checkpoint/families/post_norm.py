"""OLMo 2 and 3, EXAONE 4: what attention and MLP add is normalised, not what they read.

Names and defaults are those of the `transformers` library. EXAONE 3, a Llama by other names, is
here beside its successor.
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
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.fields import ConfigFields
from minillm_repl.checkpoint.families.rope import read_ropes, rope_by_layer_type
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import Rope

_OLMO3_THETA = 500_000.0


def _read_olmo2(fields: ConfigFields, rope: Rope | None = None) -> LlamaConfig:
    bias = fields.boolean("attention_bias")
    return replace(
        read_common(fields, rope),
        qkv_bias=bias,
        out_bias=bias,
        norm_placement="post",
        qk_norm=True,
        qk_norm_per_head=False,
    )


def _read_olmo3(fields: ConfigFields) -> LlamaConfig:
    full, sliding = read_ropes(fields, _OLMO3_THETA, _OLMO3_THETA)
    config = _read_olmo2(fields, full)
    usual = [(layer + 1) % 4 != 0 for layer in range(config.n_layers)]
    windows = windows_by_layer(fields, fields.integer("sliding_window", 0), usual)
    return with_ropes(replace(config, sliding_windows=windows), full, sliding)


def _write_olmo3(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_common(config),
        "rope_scaling": None,
        "rope_parameters": rope_by_layer_type(config.rope, config.sliding_rope or config.rope),
        "layer_types": layer_types(config),
    }


def _read_exaone4(fields: ConfigFields) -> LlamaConfig:
    config, window = read_common(fields), fields.integer("sliding_window", 0)
    pattern = (
        fields.integer("sliding_window_pattern") if window and not fields.get("layer_types") else 0
    )
    usual = [pattern > 0 and (layer + 1) % pattern != 0 for layer in range(config.n_layers)]
    windows = windows_by_layer(fields, window, usual)
    # Where some layers have a window, or could have, only these have RoPE.
    rope_layers = tuple(size > 0 for size in windows) or (not window,) * config.n_layers
    return replace(
        config,
        norm_placement="post",
        qk_norm=True,
        sliding_windows=windows,
        rope_layers=() if all(rope_layers) else rope_layers,
    )


def _write_exaone4(config: LlamaConfig) -> dict[str, Any]:
    window = max(config.sliding_windows, default=0)
    has_rope_only_in_windows = bool(window or config.rope_layers)
    return {
        **write_common(config),
        "sliding_window": (window or config.context_length) if has_rope_only_in_windows else None,
        "layer_types": layer_types(config),
    }


_POST_NORMS = {
    "post_norm1": ("model.layers.{}.post_attention_layernorm",),
    "post_norm2": ("model.layers.{}.post_feedforward_layernorm",),
}
_OLMO2_DEFAULTS = LLAMA_DEFAULTS | {"vocab_size": 50_304, "rms_norm_eps": 1e-5}
_EXAONE4_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 102_400,
    "num_key_value_heads": 32,
    "intermediate_size": 16_384,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4_096,
    "sliding_window_pattern": 4,
}
OLMO2 = llama_family(
    "olmo2", "OLMo 2", "Olmo2ForCausalLM", _read_olmo2, _OLMO2_DEFAULTS, names=_POST_NORMS
)
OLMO3 = llama_family(
    "olmo3",
    "OLMo 3",
    "Olmo3ForCausalLM",
    _read_olmo3,
    _OLMO2_DEFAULTS | {"sliding_window": 4_096},
    _write_olmo3,
    _POST_NORMS,
)
EXAONE4 = llama_family(
    "exaone4",
    "EXAONE 4",
    "Exaone4ForCausalLM",
    _read_exaone4,
    _EXAONE4_DEFAULTS,
    _write_exaone4,
    _POST_NORMS,
)
# Its config has GPT-2's names for some fields, its file for the tensors.
EXAONE3 = Family(
    model_type="exaone",
    title="EXAONE 3",
    architecture="ExaoneForCausalLM",
    read_config=read_common,
    write_config=write_common,
    tensor_names={
        "token_embedding": ("transformer.wte",),
        "norm1": ("transformer.h.{}.ln_1",),
        "attention.qkv": tuple(f"transformer.h.{{}}.attn.attention.{part}_proj" for part in "qkv"),
        "attention.proj": ("transformer.h.{}.attn.attention.out_proj",),
        "norm2": ("transformer.h.{}.ln_2",),
        "mlp.gate_up": ("transformer.h.{}.mlp.c_fc_0", "transformer.h.{}.mlp.c_fc_1"),
        "mlp.down": ("transformer.h.{}.mlp.c_proj",),
        "norm_f": ("transformer.ln_f",),
        "lm_head": ("lm_head",),
    },
    prefix="transformer.",
    defaults=LLAMA_DEFAULTS | {"vocab_size": 102_400, "rms_norm_eps": 1e-5},
    arch="llama",
    field_aliases={
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
)
