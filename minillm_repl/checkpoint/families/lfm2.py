"""LFM2: most layers have a short convolution where the others have attention.

Names and defaults are those of the `transformers` library.
"""

from dataclasses import replace
from typing import Any

from minillm_repl.checkpoint import Layout
from minillm_repl.checkpoint.families.common import LLAMA_NAMES, read_common, write_common
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.fields import FULL_ATTENTION, ConfigFields
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import printable

CONV = "conv"
_MAX_WIDTH = 1_000_000


def _read_lfm2(fields: ConfigFields) -> LlamaConfig:
    fields.require("conv_bias", False)
    config = read_common(fields)
    return replace(
        config,
        d_mlp=_mlp_width(fields),
        qk_norm=True,
        conv_layers=_conv_layers(fields, config.n_layers),
        conv_tokens=fields.integer("conv_L_cache"),
    )


def _conv_layers(fields: ConfigFields, n_layers: int) -> tuple[bool, ...]:
    """Return whether each layer has a convolution; empty if none has.

    `layer_types` decides, or `full_attn_idxs`, the layers with attention. Raises UserError.
    """
    kinds, attends = fields.get("layer_types"), fields.get("full_attn_idxs")
    if kinds is None and isinstance(attends, list):
        kinds = [FULL_ATTENTION if layer in attends else CONV for layer in range(n_layers)]
    if kinds is None:
        return ()
    if (
        not isinstance(kinds, list)
        or len(kinds) != n_layers
        or any(kind not in (CONV, FULL_ATTENTION) for kind in kinds)
    ):
        raise UserError(
            _(
                "{name} must be {wanted}, not {value:.40}",
                name="layer_types",
                wanted=_("a list of {count} names", count=n_layers),
                value=printable(kinds),
            )
        )
    found = tuple(kind == CONV for kind in kinds)
    return found if any(found) else ()


def _mlp_width(fields: ConfigFields) -> int:
    """Return the width of the MLP; config.json may have one of which two thirds are meant."""
    name = "block_ff_dim" if fields.get("block_ff_dim") is not None else "intermediate_size"
    width = fields.integer(name)
    if not fields.boolean("block_auto_adjust_ff_dim"):
        return width
    multiple = max(1, fields.integer("block_multiple_of"))
    scaled = int(fields.number("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    return min(_MAX_WIDTH + 1, -(-scaled // multiple) * multiple)  # LlamaConfig refuses the largest


def _write_lfm2(config: LlamaConfig) -> dict[str, Any]:
    conv = config.conv_layers or (False,) * config.n_layers
    return {
        **write_common(config),
        "norm_eps": config.norm_eps,
        "conv_L_cache": config.conv_tokens,
        "conv_bias": False,
        "block_auto_adjust_ff_dim": False,
        "layer_types": [CONV if each else FULL_ATTENTION for each in conv],
    }


# A file has (d_model, 1, tokens), as torch's Conv1d; the model has (tokens, d_model).
_CONV1D = Layout(
    lambda array: array[:, 0].T,
    lambda array: array.T[:, None],
    lambda shape: (shape[1], 1, shape[0]),
)

_LAYER = "model.layers.{}."
LFM2 = Family(
    model_type="lfm2",
    title="LFM2",
    architecture="Lfm2ForCausalLM",
    read_config=_read_lfm2,
    write_config=_write_lfm2,
    tensor_names={
        **LLAMA_NAMES,
        "norm1": (_LAYER + "operator_norm",),
        "attention.q_norm": (_LAYER + "self_attn.q_layernorm",),
        "attention.k_norm": (_LAYER + "self_attn.k_layernorm",),
        "attention.proj": (_LAYER + "self_attn.out_proj",),
        "conv.gates": (_LAYER + "conv.in_proj",),
        "conv.taps": (_LAYER + "conv.conv",),
        "conv.proj": (_LAYER + "conv.out_proj",),
        "norm2": (_LAYER + "ffn_norm",),
        "mlp.gate_up": (_LAYER + "feed_forward.w1", _LAYER + "feed_forward.w3"),
        "mlp.down": (_LAYER + "feed_forward.w2",),
        "norm_f": ("model.embedding_norm",),
    },
    prefix="model.",
    defaults={
        "vocab_size": 65_536,
        "max_position_embeddings": 128_000,
        "hidden_size": 2_560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 12_288,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    arch="llama",
    field_aliases={"norm_eps": "rms_norm_eps", "tie_embedding": "tie_word_embeddings"},
    layouts=lambda _config: {"conv.taps": _CONV1D},
)
