"""The families that model/llama.py runs: Llama, Mistral, Qwen 2 and Qwen 3.

Names and defaults are those of the `transformers` library.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.fields import (
    FULL,
    SLIDING,
    Fields,
    activation_name,
    rope_scaling,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import LlamaConfig


def _read_llama(fields: Fields) -> LlamaConfig:
    bias = fields.flag("attention_bias")
    return replace(
        _read_common(fields), qkv_bias=bias, out_bias=bias, ff_bias=fields.flag("mlp_bias")
    )


def _read_mistral(fields: Fields) -> LlamaConfig:
    window = fields.whole("sliding_window", 0)  # null is no window; left out, it is a wide one
    config = _read_common(fields)
    return replace(config, windows=_windows(fields, window, [window > 0] * config.layers))


def _read_qwen2(fields: Fields) -> LlamaConfig:
    return replace(_read_common(fields), qkv_bias=True, windows=_late_windows(fields))


def _read_qwen3(fields: Fields) -> LlamaConfig:
    bias = fields.flag("attention_bias")
    return replace(
        _read_common(fields),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=_late_windows(fields),
    )


def _read_common(fields: Fields) -> LlamaConfig:
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    return LlamaConfig(
        fields.whole("vocab_size"),
        fields.whole("max_position_embeddings"),
        width,
        fields.whole("num_hidden_layers"),
        heads,
        kv_heads=fields.whole("num_key_value_heads", heads),
        head_size=fields.whole("head_dim", width // max(1, heads)),
        hidden=fields.whole("intermediate_size"),
        activation=fields.activation("hidden_act"),
        norm_eps=fields.number("rms_norm_eps"),
        rope=fields.rope(),
        tied=fields.flag("tie_word_embeddings"),
    )


def _late_windows(fields: Fields) -> tuple[int, ...]:
    """Return how far each layer of a Qwen sees: the later ones less far, if the file says so."""
    window = fields.whole("sliding_window", 0) if fields.flag("use_sliding_window") else 0
    first = fields.whole("max_window_layers")
    return _windows(
        fields,
        window,
        [window > 0 and layer >= first for layer in range(fields.whole("num_hidden_layers"))],
    )


def _windows(fields: Fields, window: int, usual: list[bool]) -> tuple[int, ...]:
    """Return how far each layer sees: as `layer_types` says, else those that usually do only the
    window.

    Raises UserError.
    """
    slides = [kind == SLIDING for kind in fields.layer_types(len(usual))] or usual
    if any(slides) and not window:
        raise UserError(
            _(
                "layer_types has {kind}, but use_sliding_window and sliding_window name no window",
                kind=SLIDING,
            )
        )
    return tuple(window if sliding else 0 for sliding in slides) if any(slides) else ()


def _write_llama(config: LlamaConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.hidden,
        "hidden_act": activation_name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_scaling(config.rope),
        "tie_word_embeddings": config.tied,
        "attention_bias": config.out_bias,
        "mlp_bias": config.ff_bias,
        "sliding_window": max(config.windows, default=0) or None,
        "use_sliding_window": any(config.windows),
        **({"layer_types": _layer_types(config)} if 0 in config.windows else {}),
        "max_window_layers": 0,
    }


def _layer_types(config: LlamaConfig) -> list[str]:
    return [SLIDING if window else FULL for window in config.windows]


_LLAMA_NAMES = {
    "token_embedding": ("model.embed_tokens",),
    "norm1": ("model.layers.{}.input_layernorm",),
    "attention.qkv": tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    "attention.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "attention.k_norm": ("model.layers.{}.self_attn.k_norm",),
    "attention.proj": ("model.layers.{}.self_attn.o_proj",),
    "norm2": ("model.layers.{}.post_attention_layernorm",),
    "ff.gate_up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "ff.down": ("model.layers.{}.mlp.down_proj",),
    "norm_f": ("model.norm",),
    "lm_head": ("lm_head",),
}


_LLAMA_DEFAULTS = {
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
_MISTRAL_DEFAULTS = _LLAMA_DEFAULTS | {
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "sliding_window": 4_096,
}
_QWEN2_DEFAULTS = _LLAMA_DEFAULTS | {
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "intermediate_size": 22_016,
    "use_sliding_window": False,
    "sliding_window": 4_096,
    "max_window_layers": 28,
}
_QWEN3_DEFAULTS = _QWEN2_DEFAULTS | {"head_dim": 128}


def _like_llama(
    model_type: str,
    title: str,
    architecture: str,
    read: Callable[[Fields], LlamaConfig],
    defaults: Mapping[str, Any],
) -> Family:
    return Family(
        model_type,
        title,
        architecture,
        read,
        _write_llama,
        _LLAMA_NAMES,
        prefix="model.",
        defaults=defaults,
        arch="llama",
    )


LLAMA = _like_llama("llama", "Llama", "LlamaForCausalLM", _read_llama, _LLAMA_DEFAULTS)
MISTRAL = _like_llama("mistral", "Mistral", "MistralForCausalLM", _read_mistral, _MISTRAL_DEFAULTS)
QWEN2 = _like_llama("qwen2", "Qwen 2", "Qwen2ForCausalLM", _read_qwen2, _QWEN2_DEFAULTS)
QWEN3 = _like_llama("qwen3", "Qwen 3", "Qwen3ForCausalLM", _read_qwen3, _QWEN3_DEFAULTS)
