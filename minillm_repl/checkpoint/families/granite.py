"""Granite 3 and 4, and HyperCLOVA X: Llamas with four multipliers.

Names and defaults are those of the `transformers` library.
"""

from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint.families.common import (
    LLAMA_DEFAULTS,
    llama_family,
    read_common,
    write_common,
)
from minillm_repl.checkpoint.families.fields import ConfigFields
from minillm_repl.model.config import LlamaConfig


def read_granite(fields: ConfigFields) -> LlamaConfig:
    """Return the config of a Granite. Raises UserError."""
    bias = fields.boolean("attention_bias")
    return replace(
        read_common(fields),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.boolean("mlp_bias"),
        embedding_multiplier=fields.positive("embedding_multiplier"),
        residual_multiplier=fields.positive("residual_multiplier"),
        attention_multiplier=fields.positive("attention_multiplier"),
        logits_scaling=fields.positive("logits_scaling"),
    )


def write_granite(config: LlamaConfig) -> dict[str, Any]:
    """Return the fields that `read_granite` reads."""
    return {
        **write_common(config),
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "attention_multiplier": config.attention_scale,
        "logits_scaling": config.logits_scaling,
    }


def _read_granite_hybrid(fields: ConfigFields) -> LlamaConfig:
    # Without experts and Mamba layers, as in Granite 4 micro, 1B and 350M.
    fields.require("num_local_experts", 0)
    config = replace(read_granite(fields), d_mlp=fields.integer("shared_intermediate_size"))
    if not fields.layer_types(config.n_layers):  # without the field, all layers are Mamba's
        fields.require("layer_types", ["attention"] * config.n_layers)
    fields.require("position_embedding_type", None, "rope")
    has_rope = fields.get("position_embedding_type") == "rope"
    return replace(config, rope_layers=() if has_rope else (False,) * config.n_layers)


def _write_granite_hybrid(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_granite(config),
        "num_local_experts": 0,
        "shared_intermediate_size": config.d_mlp,
        "layer_types": ["full_attention"] * config.n_layers,
        "position_embedding_type": None if config.rope_layers else "rope",
        "mamba_n_heads": 2,  # of layers that it lacks; the library's default may not fit d_model
    }


def _read_hyperclovax(fields: ConfigFields) -> LlamaConfig:
    config = read_common(fields)
    bias = fields.boolean("attention_bias")
    return replace(
        config,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.boolean("mlp_bias"),
        norm_placement="both" if fields.boolean("use_post_norm") else "pre",
        embedding_multiplier=fields.positive("embedding_multiplier"),
        residual_multiplier=fields.positive("residual_multiplier"),
        attention_multiplier=fields.positive("attention_multiplier", config.head_dim**-0.5),
        logits_scaling=1 / fields.positive("logits_scaling"),  # here it multiplies
    )


def _write_hyperclovax(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_granite(config),
        "logits_scaling": 1 / config.logits_scaling,
        "use_post_norm": config.norm_placement == "both",
    }


MULTIPLIERS = {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
}
GRANITE = llama_family(
    "granite",
    "Granite",
    "GraniteForCausalLM",
    read_granite,
    LLAMA_DEFAULTS | MULTIPLIERS,
    write_granite,
)
GRANITE_HYBRID = replace(
    llama_family(
        "granitemoehybrid",
        "Granite 4",
        "GraniteMoeHybridForCausalLM",
        _read_granite_hybrid,
        LLAMA_DEFAULTS
        | MULTIPLIERS
        | {"num_local_experts": 8, "shared_intermediate_size": 1_024, "layer_types": None},
        _write_granite_hybrid,
        {
            "mlp.gate_up": ("model.layers.{}.shared_mlp.input_linear",),
            "mlp.down": ("model.layers.{}.shared_mlp.output_linear",),
        },
    ),
    field_aliases={"layers_block_type": "layer_types"},
)
HYPERCLOVAX = llama_family(
    "hyperclovax",
    "HyperCLOVA X",
    "HyperCLOVAXForCausalLM",
    _read_hyperclovax,
    LLAMA_DEFAULTS
    | {name: value for name, value in MULTIPLIERS.items() if name != "attention_multiplier"}
    | {"use_post_norm": True},
    _write_hyperclovax,
    {"post_norm1": ("model.layers.{}.post_norm1",), "post_norm2": ("model.layers.{}.post_norm2",)},
)
