"""The architectures of GGUF as data: which family each is, its keys, and its names of tensors.

A file's metadata becomes the fields of a config.json, which the family reads; a config goes the
same way back. The weights become the model's by one table of names, because GGUF has the same
names in all architectures.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from minillm_repl.checkpoint import AS_IS, TRANSPOSED, Layout, SourceTensor, WeightMap
from minillm_repl.checkpoint.families.family import split_name, split_shape
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line

ARCHITECTURE, TOKENS = "general.architecture", "tokenizer.ggml.tokens"
GGUF_TYPES = ("f16", "bf16", "f32", "q8_0", "q4_0")  # that are written here
EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of GGUF."""

    name: str  # general.architecture
    model_type: str  # of the family
    # From a field of config.json to the key of its value, without the architecture before it.
    keys: Mapping[str, str]
    # Keys that a file may leave out; llama.cpp and the family have the same defaults.
    optional: Collection[str] = ()
    # q and k have the two numbers of each rotated pair beside each other, not half a head apart.
    interleaved: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)  # fields that no key has


_OF_LLAMA = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta")
_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_NO_WINDOW = {"use_sliding_window": False, "sliding_window": None}
_WINDOW = {"sliding_window": "attention.sliding_window"}
_MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
_EXPERTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}


def _like_llama(
    name: str,
    model_type: str = "",
    keys: Mapping[str, str] = MappingProxyType({}),
    optional: Collection[str] = (),
    constants: Mapping[str, Any] = MappingProxyType({}),
    *,
    interleaved: bool = False,
) -> Architecture:
    return Architecture(
        name=name,
        model_type=model_type or name,
        keys={**_OF_LLAMA, **keys},
        optional=(*_OPTIONAL, *optional),
        interleaved=interleaved,
        constants={"rope_theta": 10_000.0, **constants},
    )


ARCHITECTURES = (
    _like_llama("llama", constants=_NO_BIAS, interleaved=True),
    _like_llama("qwen2", constants=_NO_WINDOW),
    _like_llama("qwen3", constants={**_NO_WINDOW, "attention_bias": False}),
    _like_llama("smollm3", constants=_NO_BIAS | _NO_WINDOW, interleaved=True),
    _like_llama("granite", keys=_MULTIPLIERS, constants=_NO_BIAS, interleaved=True),
    # Whether the weights of the chosen experts are divided by their sum, no key says.
    _like_llama(
        "qwen3moe",
        "qwen3_moe",
        keys={**_EXPERTS, "moe_intermediate_size": "expert_feed_forward_length"},
        optional=("intermediate_size",),
        constants={**_NO_WINDOW, "attention_bias": False, "norm_topk_prob": True},
    ),
    _like_llama("olmoe", keys=_EXPERTS, constants=_NO_BIAS | {"norm_topk_prob": False}),
    _like_llama(
        "granitemoe",
        keys={
            **_MULTIPLIERS,
            "num_local_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        constants=_NO_BIAS,
        interleaved=True,
    ),
    _like_llama("exaone"),
    _like_llama("exaone4", keys=_WINDOW, optional=_WINDOW, constants={"sliding_window": None}),
    _like_llama("olmo2", constants=_NO_BIAS),
    _like_llama("phi3", keys=_WINDOW, optional=_WINDOW, constants={"sliding_window": None}),
    _like_llama(
        "gemma2",
        keys={
            **_WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        optional=("attn_logit_softcapping", "final_logit_softcapping"),
        constants=_NO_BIAS,
    ),
    _like_llama(
        "gemma3",
        "gemma3_text",
        keys={
            **_WINDOW,
            "rope_local_base_freq": "rope.freq_base_swa",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        optional=("rope_local_base_freq", "final_logit_softcapping"),
        # Older files leave out both bases.
        constants={**_NO_BIAS, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
    _like_llama(
        "lfm2",
        keys={"conv_L_cache": "shortconv.l_cache"},
        constants={"rope_theta": 1e6, "block_auto_adjust_ff_dim": False},
    ),
    Architecture(
        name="gpt2",
        model_type="gpt2",
        keys={
            "n_positions": "context_length",
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_inner": "feed_forward_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
    ),
    Architecture(
        name="gptneox",
        model_type="gpt_neox",
        keys={
            "max_position_embeddings": "context_length",
            "hidden_size": "embedding_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "intermediate_size": "feed_forward_length",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
            "rotary_emb_base": "rope.freq_base",
        },
        optional=("rotary_emb_base",),
    ),
)
# From our name to the names in a file, both without `.weight`. Several are stacked by rows; the
# first of several alternatives that a file has counts.
_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "token_embedding": (("token_embd",),),
    "position_embedding": (("position_embd",),),
    "norm1": (("blk.{}.attn_norm",),),
    "attention.qkv": (("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"), ("blk.{}.attn_qkv",)),
    "attention.q_norm": (("blk.{}.attn_q_norm",),),
    "attention.k_norm": (("blk.{}.attn_k_norm",),),
    "attention.proj": (("blk.{}.attn_output",),),
    "conv.gates": (("blk.{}.shortconv.in_proj",),),
    "conv.taps": (("blk.{}.shortconv.conv",),),
    "conv.proj": (("blk.{}.shortconv.out_proj",),),
    "post_norm1": (("blk.{}.post_attention_norm",),),
    "norm2": (("blk.{}.ffn_norm",),),
    "mlp.gate_up": (("blk.{}.ffn_gate", "blk.{}.ffn_up"), ("blk.{}.ffn_up",)),
    "mlp.up": (("blk.{}.ffn_up",),),
    "mlp.router": (("blk.{}.ffn_gate_inp",),),
    # All experts of a layer are in one tensor of three dimensions.
    "mlp.experts.gate_up": (
        ("blk.{}.ffn_gate_exps", "blk.{}.ffn_up_exps"),
        ("blk.{}.ffn_gate_up_exps",),
    ),
    "mlp.experts.down": (("blk.{}.ffn_down_exps",),),
    "mlp.down": (("blk.{}.ffn_down",),),
    "post_norm2": (("blk.{}.post_ffw_norm",),),
    "norm_f": (("output_norm",), ("token_embd_norm",)),
    "lm_head": (("output",),),
}
_NAMES |= {"ln1": _NAMES["norm1"], "ln2": _NAMES["norm2"], "ln_f": _NAMES["norm_f"]}


# Of the alternatives below, what an architecture has where it is not the first.
_FUSED = ("attention.qkv", "mlp.gate_up")
_TAKES_LAST = {"gpt2": _FUSED, "gptneox": _FUSED, "phi3": _FUSED, "lfm2": ("norm_f",)}


def find_architecture(metadata: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a file names. Raises UserError with the supported ones."""
    name = metadata.get(ARCHITECTURE)
    for each in ARCHITECTURES:
        if each.name == name:
            return each
    raise UserError(
        _(
            "unsupported architecture {name!r:.40}; supported: {names}",
            name=safe_line(str(name)),
            names=", ".join(each.name for each in ARCHITECTURES),
        )
    )


def gguf_weight_map(
    architecture: Architecture, config: AnyConfig, names: Collection[str] = ()
) -> WeightMap:
    """Return the weight map from a file with these tensor names to the model."""
    sources = dict[str, tuple[SourceTensor, ...]]()
    for name, shape in config.shapes():
        key, numbers, ending = split_name(name)
        alternatives = [
            [f"{each.format(*numbers)}.{ending}" for each in parts] for parts in _NAMES[key]
        ]
        usual = alternatives[-1 if key in _TAKES_LAST.get(architecture.name, ()) else 0]
        theirs = next((parts for parts in alternatives if set(parts) <= set(names)), usual)
        # Gemma's norms multiply by 1 + weight; a file has the sum.
        layouts = [_PLUS_ONE if config.norm_plus_one and len(shape) == 1 else AS_IS] * len(theirs)
        if key == "conv.taps":
            layouts = [TRANSPOSED]
        if architecture.interleaved and len(theirs) == 3:
            layouts[:2] = [_interleaved(config.n_heads), _interleaved(config.n_kv_heads)]
        shapes = split_shape(config, len(theirs), shape)
        pieces = [
            (each, layout.file_shape(part), layout)
            for each, part, layout in zip(theirs, shapes, layouts, strict=True)
        ]
        if len(numbers) < 2:
            sources[name] = tuple(SourceTensor(*each) for each in pieces)
            continue
        stacks, expert = config.n_experts, int(numbers[1])
        sources[name] = tuple(
            SourceTensor(each, (stacks, *part), layout, expert) for each, part, layout in pieces
        )
    return WeightMap(sources, re.compile(re.escape(ROPE_FACTORS)))


_PLUS_ONE = Layout(lambda array: array - 1, lambda array: array + 1)


def _interleaved(n_heads: int) -> Layout:
    """Return the layout of q or k whose pairs are beside each other in a file.

    It moves whole rows, so that rows of blocks go through it as rows of numbers do.
    """
    return Layout(
        lambda array: (
            array.reshape(n_heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        ),
        lambda array: (
            array.reshape(n_heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        ),
    )
