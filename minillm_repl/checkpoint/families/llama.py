"""Llama, and the families that differ from it in a window, a norm or a bias.

Names and defaults are those of the `transformers` library.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.fields import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    ConfigFields,
    activation_name,
)
from minillm_repl.checkpoint.families.rope import read_rope, rope_scaling
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import Rope, printable


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


def read_common(
    fields: ConfigFields, rope: Rope | None = None, activation: str = "hidden_act"
) -> LlamaConfig:
    """Return what every family of model/llama.py says alike, `rope` instead of the usual RoPE.

    Raises UserError.
    """
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    rope = rope or read_rope(fields)
    context = fields.integer("max_position_embeddings")
    if rope.scaling == "longrope":  # a longer text would need other keys from its beginning
        context = min(context, rope.original_max_position_embeddings)
    return LlamaConfig(
        vocab_size=fields.integer("vocab_size"),
        context_length=context,
        d_model=d_model,
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", n_heads),
        # max: a count of 0 is refused by LlamaConfig, with a better message than a division's.
        head_dim=fields.integer("head_dim", d_model // max(1, n_heads)),
        d_mlp=fields.integer("intermediate_size"),
        activation=fields.activation(activation),
        norm_eps=fields.number("rms_norm_eps"),
        rope=rope,
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
    )


def _qwen_windows(fields: ConfigFields) -> tuple[int, ...]:
    """Return the window of each layer: the layers from `max_window_layers` on may have one."""
    window = fields.integer("sliding_window", 0) if fields.boolean("use_sliding_window") else 0
    first = fields.integer("max_window_layers")
    n_layers = fields.integer("num_hidden_layers")
    usual = [window > 0 and layer >= first for layer in range(n_layers)]
    return windows_by_layer(fields, window, usual)


def windows_by_layer(
    fields: ConfigFields, sliding_window: int, usual: list[bool]
) -> tuple[int, ...]:
    """Return the window of each layer in tokens, 0 for none; empty if no layer has a window.

    `layer_types` decides; without it, the layers of `usual` have one. Raises UserError.
    """
    # layer_types is newer and more precise than max_window_layers.
    is_sliding = [kind == SLIDING_ATTENTION for kind in fields.layer_types(len(usual))] or usual
    if any(is_sliding) and not sliding_window:
        raise UserError(
            _(
                "layer_types has {kind}, but use_sliding_window and sliding_window set no "
                "window size",
                kind=SLIDING_ATTENTION,
            )
        )
    if not any(is_sliding):
        return ()
    return tuple(sliding_window if sliding else 0 for sliding in is_sliding)


def with_ropes(config: LlamaConfig, full: Rope, sliding: Rope) -> LlamaConfig:
    """Return a config with a RoPE for full attention, and one for the layers with a window."""
    windows = config.sliding_windows or (0,)
    used = {sliding if window else full for window in windows}
    if len(used) == 1:
        return replace(config, rope=used.pop())
    return replace(config, rope=full, sliding_rope=sliding)


def write_common(config: LlamaConfig) -> dict[str, Any]:
    """Return the fields that `read_common` reads, and those of windows and biases."""
    rope, context = config.rope, config.context_length
    if rope.scaling == "longrope":
        context = round(rope.original_max_position_embeddings * rope.factor)
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": context,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_mlp,
        "hidden_act": activation_name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_scaling(config.rope),
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.out_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": max(config.sliding_windows, default=0) or None,
        "use_sliding_window": any(config.sliding_windows),
        # Only a mix of layers needs layer_types.
        **({"layer_types": layer_types(config)} if 0 in config.sliding_windows else {}),
        "max_window_layers": 0,
    }


def layer_types(config: LlamaConfig) -> list[str]:
    """Return the `layer_types` field: which layers have a window."""
    windows = config.sliding_windows or (0,) * config.n_layers
    return [SLIDING_ATTENTION if window else FULL_ATTENTION for window in windows]


# Several names: the file has a matrix for each; the model stacks them into one.
LLAMA_NAMES = {
    "token_embedding": ("model.embed_tokens",),
    "norm1": ("model.layers.{}.input_layernorm",),
    "attention.qkv": tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    "attention.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "attention.k_norm": ("model.layers.{}.self_attn.k_norm",),
    "attention.proj": ("model.layers.{}.self_attn.o_proj",),
    "norm2": ("model.layers.{}.post_attention_layernorm",),
    "mlp.gate_up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "mlp.down": ("model.layers.{}.mlp.down_proj",),
    "norm_f": ("model.norm",),
    "lm_head": ("lm_head",),
}


# The defaults of each config class in `transformers`, for fields that a config.json leaves out.
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_000,
    "max_position_embeddings": 2_048,
    "hidden_size": 4_096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
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


def llama_family(
    model_type: str,
    title: str,
    architecture: str,
    read: Callable[[ConfigFields], LlamaConfig],
    defaults: Mapping[str, Any],
    write: Callable[[LlamaConfig], dict[str, Any]] = write_common,
    names: Mapping[str, tuple[str, ...]] = LLAMA_NAMES,
) -> Family:
    """Return a family of model/llama.py; its tensors have Llama's names, or those of `names`."""
    return Family(
        model_type=model_type,
        title=title,
        architecture=architecture,
        read_config=read,
        write_config=write,
        tensor_names={**LLAMA_NAMES, **names},
        prefix="model.",
        defaults=defaults,
        arch="llama",
    )


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
