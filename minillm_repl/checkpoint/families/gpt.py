"""The families of model/gpt.py: GPT-2, and GPT-NeoX with the Pythia models.

Names and defaults are those of the `transformers` library.
"""

from typing import Any

from minillm_repl.checkpoint import TRANSPOSED, Layout
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.fields import ConfigFields, activation_name
from minillm_repl.checkpoint.families.rope import read_rope, rope_scaling
from minillm_repl.model.config import AnyConfig, GPTConfig
from minillm_repl.model.config_base import Rope

# -- GPT-2


def _read_gpt2(fields: ConfigFields) -> GPTConfig:
    # Variants that model/gpt.py does not compute.
    fields.require("scale_attn_weights", True)
    fields.require("scale_attn_by_inverse_layer_idx", False)
    fields.require("add_cross_attention", False)
    d_model = fields.integer("n_embd")
    return GPTConfig(
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("n_positions"),
        d_model=d_model,
        n_layers=fields.integer("n_layer"),
        n_heads=fields.integer("n_head"),
        d_mlp=fields.integer("n_inner", 4 * d_model),  # null: 4 · d_model
        activation=fields.activation("activation_function"),
        norm_eps=fields.number("layer_norm_epsilon"),
        qkv_bias=True,  # no field declares the biases: they are part of the architecture
        lm_head_bias=False,
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
    )


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "activation_function": activation_name(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


GPT2 = Family(
    model_type="gpt2",
    title="GPT-2",
    architecture="GPT2LMHeadModel",
    read_config=_read_gpt2,
    write_config=_write_gpt2,
    tensor_names={
        "token_embedding": ("transformer.wte",),
        "position_embedding": ("transformer.wpe",),
        "ln1": ("transformer.h.{}.ln_1",),
        "attention.qkv": ("transformer.h.{}.attn.c_attn",),
        "attention.proj": ("transformer.h.{}.attn.c_proj",),
        "ln2": ("transformer.h.{}.ln_2",),
        "mlp.up": ("transformer.h.{}.mlp.c_fc",),
        "mlp.down": ("transformer.h.{}.mlp.c_proj",),
        "ln_f": ("transformer.ln_f",),
        "lm_head": ("lm_head",),
    },
    prefix="transformer.",
    defaults={
        "vocab_size": 50_257,
        "n_positions": 1_024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    field_aliases={
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    },
    # GPT-2 multiplies from the other side (Conv1D): its matrices are (inputs, outputs).
    layouts=lambda _config: dict.fromkeys(
        ("attention.qkv", "attention.proj", "mlp.up", "mlp.down"), TRANSPOSED
    ),
    ignored=r"\.attn\.(masked_)?bias$",  # the causal mask, which older versions saved
)


# -- GPT-NeoX, Pythia


def _read_gpt_neox(fields: ConfigFields) -> GPTConfig:
    # model/gpt.py has these biases always.
    fields.require("attention_bias", True)
    d_model = fields.integer("hidden_size")
    return GPTConfig(
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings"),
        d_model=d_model,
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=fields.integer("num_attention_heads"),
        d_mlp=fields.integer("intermediate_size"),
        activation=fields.activation("hidden_act"),
        norm_eps=fields.number("layer_norm_eps"),
        qkv_bias=True,
        lm_head_bias=False,
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        rope=read_rope(fields, "rotary_emb_base", "rotary_pct"),
        parallel_residual=fields.boolean("use_parallel_residual"),
    )


def _write_gpt_neox(config: GPTConfig) -> dict[str, Any]:
    rope = config.rope or Rope()
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "hidden_act": activation_name(config.activation),
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rotary_emb_base": rope.theta,
        "rotary_pct": rope.rotary_pct,
        "rope_scaling": rope_scaling(rope),
        "use_parallel_residual": config.parallel_residual,
    }


def _qkv_by_head(config: AnyConfig) -> Layout:
    """Return the layout of qkv: by head in the file, (head, qkv, …); here (qkv, head, …)."""
    n_heads, head_dim = config.n_heads, config.head_dim
    return Layout(
        lambda array: array.reshape(n_heads, 3, head_dim, -1).swapaxes(0, 1).reshape(array.shape),
        lambda array: array.reshape(3, n_heads, head_dim, -1).swapaxes(0, 1).reshape(array.shape),
    )


GPT_NEOX = Family(
    model_type="gpt_neox",
    title="GPT-NeoX",
    architecture="GPTNeoXForCausalLM",
    read_config=_read_gpt_neox,
    write_config=_write_gpt_neox,
    tensor_names={
        "token_embedding": ("gpt_neox.embed_in",),
        "ln1": ("gpt_neox.layers.{}.input_layernorm",),
        "attention.qkv": ("gpt_neox.layers.{}.attention.query_key_value",),
        "attention.proj": ("gpt_neox.layers.{}.attention.dense",),
        "ln2": ("gpt_neox.layers.{}.post_attention_layernorm",),
        "mlp.up": ("gpt_neox.layers.{}.mlp.dense_h_to_4h",),
        "mlp.down": ("gpt_neox.layers.{}.mlp.dense_4h_to_h",),
        "ln_f": ("gpt_neox.final_layer_norm",),
        "lm_head": ("embed_out",),
    },
    prefix="gpt_neox.",
    defaults={
        "vocab_size": 50_432,
        "max_position_embeddings": 2_048,
        "hidden_size": 6_144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rotary_emb_base": 10_000.0,
        "rotary_pct": 0.25,  # of each head is rotated
        "use_parallel_residual": True,
    },
    layouts=lambda config: {"attention.qkv": _qkv_by_head(config)},
    tensor_aliases={"embed_out.weight": "lm_head.weight"},
    ignored=r"\.attention\.(masked_)?bias$",
)
