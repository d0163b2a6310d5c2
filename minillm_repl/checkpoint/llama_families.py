"""The families that model/llama.py runs: Llama, Mistral, Qwen 2 and Qwen 3.

Names and defaults are those of the `transformers` library.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint.family import Family
from minillm_repl.checkpoint.fields import Fields, activation_name, rope_scaling
from minillm_repl.model.config import LlamaConfig


def _read_llama(fields: Fields) -> LlamaConfig:
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    bias = fields.flag("attention_bias", False)
    return LlamaConfig(
        fields.whole("vocab_size"),
        fields.whole("max_position_embeddings"),
        width,
        fields.whole("num_hidden_layers"),
        heads,
        kv_heads=fields.whole("num_key_value_heads", heads),
        head_size=fields.whole("head_dim", width // max(1, heads)),
        hidden=fields.whole("intermediate_size"),
        activation=fields.activation("hidden_act", "silu"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=fields.rope(),
        tied=fields.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
        ff_bias=fields.flag("mlp_bias", False),
    )


def _read_mistral(fields: Fields) -> LlamaConfig:
    config = _read_llama(fields)
    window = fields.whole("sliding_window", 0)
    return replace(config, windows=(window,) * config.layers if window else ())


def _read_qwen2(fields: Fields) -> LlamaConfig:
    return replace(_read_llama(fields), qkv_bias=True, out_bias=False, windows=_windows(fields))


def _read_qwen3(fields: Fields) -> LlamaConfig:
    return replace(_read_llama(fields), qk_norm=True, windows=_windows(fields))


def _windows(fields: Fields) -> tuple[int, ...]:
    """Return how far each layer sees: the later ones less far, if the file says so."""
    window = fields.whole("sliding_window", 0)
    layers = fields.whole("num_hidden_layers")
    if not fields.flag("use_sliding_window", False) or not window:
        return ()
    first = fields.whole("max_window_layers", 28)
    kinds = fields.kinds("layer_types")
    slides = [kind == "sliding_attention" for kind in kinds] if kinds else [layer >= first for layer in range(layers)]
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
    return ["sliding_attention" if window else "full_attention" for window in config.windows]


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


def _like_llama(model_type: str, title: str, architecture: str, read: Callable[[Fields], LlamaConfig]) -> Family:
    ignored = r"\.rotary_emb\.inv_freq$"
    return Family(
        model_type,
        title,
        architecture,
        read,
        _write_llama,
        _LLAMA_NAMES,
        prefix="model.",
        arch="llama",
        ignored=ignored,
    )


LLAMA = _like_llama("llama", "Llama", "LlamaForCausalLM", _read_llama)
MISTRAL = _like_llama("mistral", "Mistral", "MistralForCausalLM", _read_mistral)
QWEN2 = _like_llama("qwen2", "Qwen 2", "Qwen2ForCausalLM", _read_qwen2)
QWEN3 = _like_llama("qwen3", "Qwen 3", "Qwen3ForCausalLM", _read_qwen3)
