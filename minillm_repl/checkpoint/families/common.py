"""What the families of model/llama.py have in common: fields, names of tensors, defaults.

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
from minillm_repl.model.config_base import Rope

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
# Those of LlamaConfig in `transformers`, for fields that a config.json leaves out.
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
