"""Mixtures of experts: Qwen 3 MoE, OLMoE and Granite MoE.

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
from minillm_repl.checkpoint.families.granite import MULTIPLIERS, read_granite, write_granite
from minillm_repl.checkpoint.families.llama import QWEN3_DEFAULTS, read_qwen3
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import LlamaConfig, printable


def _read_qwen3_moe(fields: ConfigFields) -> LlamaConfig:
    config = read_qwen3(fields)
    window = fields.integer("sliding_window", 0) if fields.boolean("use_sliding_window") else 0
    dense, step = _dense_layers(fields), fields.integer("decoder_sparse_step")
    routed = tuple(
        layer not in dense and (layer + 1) % max(1, step) == 0 for layer in range(config.n_layers)
    )
    return _with_experts(
        config,
        fields,
        fields.integer("moe_intermediate_size"),
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        routed_layers=() if all(routed) else routed,
        # All layers have the window, whatever other fields of Qwen's say.
        sliding_windows=(window,) * config.n_layers if window else (),
    )


def _dense_layers(fields: ConfigFields) -> list[int]:
    layers = fields.get("mlp_only_layers") or []
    if not isinstance(layers, list) or any(type(each) is not int for each in layers):
        raise UserError(
            _(
                "{name} must be {wanted}, not {value:.40}",
                name="mlp_only_layers",
                wanted=_("a list of numbers"),
                value=printable(layers),
            )
        )
    return layers


def _with_experts(
    config: LlamaConfig, fields: ConfigFields, d_expert: int, **others: Any
) -> LlamaConfig:
    """Return a config with the experts that its fields declare, and other values."""
    # The library has renamed the number of experts; its files have either name.
    name = "num_local_experts" if fields.get("num_local_experts") is not None else "num_experts"
    return replace(
        config,
        n_experts=fields.integer(name),
        n_experts_per_tok=fields.integer("num_experts_per_tok"),
        d_expert=d_expert,
        **others,
    )


def _write_qwen3_moe(config: LlamaConfig) -> dict[str, Any]:
    routed = config.routed_layers
    return {
        **write_common(config),
        **_write_experts(config),
        "moe_intermediate_size": config.d_expert,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, has_experts in enumerate(routed) if not has_experts],
    }


def _write_experts(config: LlamaConfig) -> dict[str, Any]:
    return {
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_per_tok,
        "norm_topk_prob": config.norm_topk_prob,
    }


def _read_olmoe(fields: ConfigFields) -> LlamaConfig:
    config, bias = read_common(fields), fields.boolean("attention_bias")
    clip = fields.get("clip_qkv")
    return _with_experts(
        config,
        fields,
        config.d_mlp,
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        qk_norm_per_head=False,
        qkv_clip=0.0 if clip is None else fields.positive("clip_qkv"),
    )


def _write_olmoe(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_common(config),
        **_write_experts(config),
        "clip_qkv": config.qkv_clip or None,
    }


def _read_granite_moe(fields: ConfigFields) -> LlamaConfig:
    config = read_granite(fields)
    # It takes the softmax over the chosen logits alone, which is the same.
    return _with_experts(config, fields, config.d_mlp, norm_topk_prob=True, mlp_bias=False)


def _write_granite_moe(config: LlamaConfig) -> dict[str, Any]:
    return {
        **write_granite(config),
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_per_tok,
    }


_MLP = "model.layers.{}.mlp."
_ROUTER = {"mlp.router": (_MLP + "gate",)}
_EXPERTS = {
    "mlp.experts.gate_up": (_MLP + "experts.{}.gate_proj", _MLP + "experts.{}.up_proj"),
    "mlp.experts.down": (_MLP + "experts.{}.down_proj",),
}
_STACKED = {  # of a file that is saved as the library keeps them in memory
    "mlp.experts.gate_up": (_MLP + "experts.gate_up_proj",),
    "mlp.experts.down": (_MLP + "experts.down_proj",),
}
_GRANITE_MLP = "model.layers.{}.block_sparse_moe."

QWEN3_MOE = replace(
    llama_family(
        "qwen3_moe",
        "Qwen 3 MoE",
        "Qwen3MoeForCausalLM",
        _read_qwen3_moe,
        # Unlike in Qwen 3, a head has d_model / n_heads numbers where no field says otherwise.
        {name: value for name, value in QWEN3_DEFAULTS.items() if name != "head_dim"}
        | {
            "hidden_size": 2_048,
            "intermediate_size": 6_144,
            "num_hidden_layers": 24,
            "num_key_value_heads": 4,
            "max_window_layers": 0,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
            "norm_topk_prob": False,
        },
        _write_qwen3_moe,
        {**_ROUTER, **_EXPERTS},
    ),
    stacked_names=_STACKED,
)
OLMOE = replace(
    llama_family(
        "olmoe",
        "OLMoE",
        "OlmoeForCausalLM",
        _read_olmoe,
        LLAMA_DEFAULTS
        | {
            "vocab_size": 50_304,
            "max_position_embeddings": 4_096,
            "hidden_size": 2_048,
            "intermediate_size": 2_048,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "rms_norm_eps": 1e-5,
            "num_experts_per_tok": 8,
            "num_experts": 64,
            "norm_topk_prob": False,
        },
        _write_olmoe,
        {**_ROUTER, **_EXPERTS},
    ),
    stacked_names=_STACKED,
)
GRANITE_MOE = replace(
    llama_family(
        "granitemoe",
        "Granite MoE",
        "GraniteMoeForCausalLM",
        _read_granite_moe,
        LLAMA_DEFAULTS | MULTIPLIERS | {"num_local_experts": 8, "num_experts_per_tok": 2},
        _write_granite_moe,
        {"mlp.router": (_GRANITE_MLP + "router.layer",)},
    ),
    stacked_names={
        "mlp.experts.gate_up": (_GRANITE_MLP + "input_linear.weight",),
        "mlp.experts.down": (_GRANITE_MLP + "output_linear.weight",),
    },
)
