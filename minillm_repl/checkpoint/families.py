"""The model families of Hugging Face folders: each a name map, and the few lines in which it differs.

Their config.json files and tensor names are those of the `transformers` library, whose defaults are used here too.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minillm_repl.checkpoint.recipe import AS_IS, TRANSPOSED, Layout, Piece, Recipe
from minillm_repl.errors import UserError
from minillm_repl.model.config import AnyConfig, GPTConfig, LlamaConfig, Rope
from minillm_repl.safetext import safe_line

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Fields:
    """Typed access to a config.json. Raises UserError naming the field."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a whole number; null counts as not there."""
        return int(self._get(name, (int,), "a whole number", default))

    def number(self, name: str, default: float) -> float:
        """Return a number."""
        return float(self._get(name, (int, float), "a number", default))

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self._get(name, (bool,), "true or false", default))

    def kinds(self, name: str) -> list[Any] | None:
        """Return a list, or None if there is none."""
        value = self._data.get(name)
        return list(value) if isinstance(value, list) else None

    def must(self, name: str, value: Any) -> None:
        """Raise UserError if the field is there and says something else than the one value that is supported."""
        if self._data.get(name, value) != value:
            raise UserError(f"{name} = {self._shown(name)} is not supported, only {value}")

    def activation(self, name: str, default: str) -> str:
        """Return our name of an activation function."""
        theirs = self._data.get(name, default)
        if theirs not in _ACTIVATIONS:
            raise UserError(f"{name} = {self._shown(name)} is not supported, only {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[theirs]

    def rope(self, theta: float = 10_000.0, share: float = 1.0) -> Rope:
        """Return the rotary positions; newer files keep all about them in `rope_parameters`."""
        described = self._data.get("rope_parameters") or self._data.get("rope_scaling") or {}
        if not isinstance(described, dict):
            raise UserError(f"rope_scaling must be an object, not {safe_line(str(described)):.40}")
        inner = Fields(described)
        kind = described.get("rope_type", described.get("type", "default"))
        theta = inner.number("rope_theta", self.number("rope_theta", theta))
        share = inner.number("partial_rotary_factor", self.number("partial_rotary_factor", share))
        match kind:
            case "default":
                return Rope(theta, share)
            case "linear":
                return Rope(theta, share, kind, inner.number("factor", 1.0))
            case "llama3":
                low, high = inner.number("low_freq_factor", 1.0), inner.number("high_freq_factor", 4.0)
                original = inner.whole("original_max_position_embeddings", self.whole("max_position_embeddings"))
                return Rope(theta, share, kind, inner.number("factor", 1.0), low, high, original)
        raise UserError(
            f"rotary scaling {safe_line(str(kind))!r:.40} is not supported, only default, linear and llama3"
        )

    def _get(self, name: str, types: tuple[type, ...], wanted: str, default: Any) -> Any:
        value = self._data.get(name)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{name} is missing")
        if type(value) not in types:
            raise UserError(f"{name} must be {wanted}, not {safe_line(str(value)):.40}")
        return value

    def _shown(self, name: str) -> str:
        return f"{safe_line(str(self._data.get(name))):.40}"


@dataclass(frozen=True)
class Family:
    """One family: how its config.json is read and written, and what it calls our tensors."""

    model_type: str
    title: str
    architecture: str
    read: Callable[[Fields], AnyConfig]
    write: Callable[[Any], dict[str, Any]]
    names: Mapping[str, tuple[str, ...]]  # ours, less the ending -> theirs, one below the other
    prefix: str  # of all names but the head's; files of a bare model lack it
    layouts: Callable[[AnyConfig], Mapping[str, Layout]] = field(default=lambda _: {})
    ignored: str = r"(?!)"

    def config(self, data: Mapping[str, Any]) -> AnyConfig:
        """Read a config.json. Raises UserError."""
        return self.read(Fields(data))

    def recipe(self, config: AnyConfig, *, bare: bool = False) -> Recipe:
        """Return how our tensors are made of theirs; `bare` names lack the prefix."""
        layouts = self.layouts(config)
        pieces: dict[str, tuple[Piece, ...]] = {}
        for name, shape in config.shapes():
            stem, _, ending = name.rpartition(".")
            block = _BLOCK.fullmatch(stem)
            key, layer = (block[2], block[1]) if block else (stem, "")
            theirs = [f"{each.format(layer)}.{ending}" for each in self.names[key]]
            if bare:
                theirs = [each.removeprefix(self.prefix) for each in theirs]
            layout = layouts.get(key, AS_IS)
            shapes = _shared_out(config, key, shape)
            if layout is TRANSPOSED:
                shapes = [shape[::-1] for shape in shapes]
            pieces[name] = tuple(Piece(each, shape, layout) for each, shape in zip(theirs, shapes, strict=True))
        head = self.names["lm_head"][0]
        unused = rf"^{re.escape(head)}\.weight$" if config.tied else r"(?!)"
        return Recipe(pieces, re.compile(f"{self.ignored}|{unused}"))


def _shared_out(config: AnyConfig, key: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the pieces of a fused tensor; a GPT's are fused in its files too."""
    if isinstance(config, LlamaConfig) and key == "attention.qkv":
        return [(rows, *shape[1:]) for rows in (config.query_rows, config.key_rows, config.key_rows)]
    if key == "ff.gate_up":
        return [(shape[0] // 2, *shape[1:])] * 2
    return [shape]


# -- GPT-2


def _read_gpt2(fields: Fields) -> GPTConfig:
    fields.must("scale_attn_weights", True)
    fields.must("scale_attn_by_inverse_layer_idx", False)
    fields.must("add_cross_attention", False)
    width = fields.whole("n_embd")
    return GPTConfig(
        fields.whole("vocab_size"),
        fields.whole("n_positions"),
        width,
        fields.whole("n_layer"),
        fields.whole("n_head"),
        hidden=fields.whole("n_inner", 4 * width),
        activation=fields.activation("activation_function", "gelu_new"),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        head_bias=False,
        tied=fields.flag("tie_word_embeddings", True),
    )


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ff_width,
        "activation_function": _theirs(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


GPT2 = Family(
    "gpt2",
    "GPT-2",
    "GPT2LMHeadModel",
    _read_gpt2,
    _write_gpt2,
    {
        "token_embedding": ("transformer.wte",),
        "position_embedding": ("transformer.wpe",),
        "ln1": ("transformer.h.{}.ln_1",),
        "attention.qkv": ("transformer.h.{}.attn.c_attn",),
        "attention.proj": ("transformer.h.{}.attn.c_proj",),
        "ln2": ("transformer.h.{}.ln_2",),
        "ff.up": ("transformer.h.{}.mlp.c_fc",),
        "ff.down": ("transformer.h.{}.mlp.c_proj",),
        "ln_f": ("transformer.ln_f",),
        "lm_head": ("lm_head",),
    },
    "transformer.",
    # The first GPT-2 was written with matrices that are multiplied from the other side.
    layouts=lambda _: dict.fromkeys(("attention.qkv", "attention.proj", "ff.up", "ff.down"), TRANSPOSED),
    ignored=r"\.attn\.(masked_)?bias$",  # the causal mask, saved by mistake
)


# -- GPT-NeoX, Pythia


def _read_gpt_neox(fields: Fields) -> GPTConfig:
    fields.must("attention_bias", True)
    width = fields.whole("hidden_size")
    return GPTConfig(
        fields.whole("vocab_size"),
        fields.whole("max_position_embeddings", 2048),
        width,
        fields.whole("num_hidden_layers"),
        fields.whole("num_attention_heads"),
        hidden=fields.whole("intermediate_size", 4 * width),
        activation=fields.activation("hidden_act", "gelu"),
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        qkv_bias=True,
        head_bias=False,
        tied=fields.flag("tie_word_embeddings", False),
        rope=fields.rope(fields.number("rotary_emb_base", 10_000.0), fields.number("rotary_pct", 0.25)),
        parallel=fields.flag("use_parallel_residual", True),
    )


def _write_gpt_neox(config: GPTConfig) -> dict[str, Any]:
    rope = config.rope or Rope()
    return {
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ff_width,
        "hidden_act": _theirs(config.activation),
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "rotary_emb_base": rope.theta,
        "rotary_pct": rope.share,
        "rope_scaling": _scaling(rope),
        "use_parallel_residual": config.parallel,
    }


def _by_head(config: AnyConfig) -> Layout:
    """GPT-NeoX keeps query, key and value of each head together; here are all queries, all keys, all values."""
    heads, size = config.heads, config.head_size
    return Layout(
        lambda array: array.reshape(heads, 3, size, -1).swapaxes(0, 1).reshape(array.shape),
        lambda array: array.reshape(3, heads, size, -1).swapaxes(0, 1).reshape(array.shape),
    )


GPT_NEOX = Family(
    "gpt_neox",
    "GPT-NeoX",
    "GPTNeoXForCausalLM",
    _read_gpt_neox,
    _write_gpt_neox,
    {
        "token_embedding": ("gpt_neox.embed_in",),
        "ln1": ("gpt_neox.layers.{}.input_layernorm",),
        "attention.qkv": ("gpt_neox.layers.{}.attention.query_key_value",),
        "attention.proj": ("gpt_neox.layers.{}.attention.dense",),
        "ln2": ("gpt_neox.layers.{}.post_attention_layernorm",),
        "ff.up": ("gpt_neox.layers.{}.mlp.dense_h_to_4h",),
        "ff.down": ("gpt_neox.layers.{}.mlp.dense_4h_to_h",),
        "ln_f": ("gpt_neox.final_layer_norm",),
        "lm_head": ("embed_out",),
    },
    "gpt_neox.",
    layouts=lambda config: {"attention.qkv": _by_head(config)},
    ignored=r"\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)$",
)


# -- Llama and its kin


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
        "hidden_act": _theirs(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": _scaling(config.rope),
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


def _scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.scaling == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
        scaling |= {"original_max_position_embeddings": rope.original}
    return scaling


def _theirs(activation: str) -> str:
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


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
    return Family(model_type, title, architecture, read, _write_llama, _LLAMA_NAMES, prefix="model.", ignored=ignored)


FAMILIES = (
    GPT2,
    GPT_NEOX,
    _like_llama("llama", "Llama", "LlamaForCausalLM", _read_llama),
    _like_llama("mistral", "Mistral", "MistralForCausalLM", _read_mistral),
    _like_llama("qwen2", "Qwen 2", "Qwen2ForCausalLM", _read_qwen2),
    _like_llama("qwen3", "Qwen 3", "Qwen3ForCausalLM", _read_qwen3),
)


def family_called(model_type: Any) -> Family:
    """Return the family of a config.json's `model_type`. Raises UserError with those that are supported."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    raise UserError(
        f"models of type {safe_line(str(model_type))!r:.40} cannot be opened; these can:"
        f" {', '.join(family.model_type for family in FAMILIES)}"
    )


def family_of(config: AnyConfig) -> Family | None:
    """Return the first family whose config.json says all that `config` says."""
    for family in FAMILIES:
        if isinstance(config, LlamaConfig) != (family.prefix == "model."):
            continue
        try:
            if family.config(family.write(config)) == config:
                return family
        except UserError:
            continue
    return None


def family_title(config: AnyConfig) -> str:
    """Return what to call a model of this config: `GPT-2`, `Llama`, or `GPT` for the study note's kind."""
    family = family_of(config)
    return family.title if family else config.arch.upper() if config.arch == "gpt" else config.arch.title()
