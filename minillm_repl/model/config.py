"""The sizes of the models, and the names and shapes of their tensors; needs no torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

ACTIVATIONS = ("gelu", "gelu-tanh", "silu", "relu")
SCALINGS = ("none", "linear", "llama3")

# Limits of a file's sizes: far above the models that this program is for, and low enough that a
# hostile file cannot claim a giant.
_MAX_BY_FIELD = {
    "vocab_size": 2_000_000,
    "n_layers": 1_000,
    "n_heads": 1_024,
    "n_kv_heads": 1_024,
    "d_model": 65_536,
    "d_mlp": 1_000_000,
}
_MAX_OTHER = 100_000_000
_MAY_BE_ZERO = {"d_mlp"}


def _check(config: object) -> None:
    """Raise UserError if a frozen dataclass's number, switch or choice is none or senseless."""
    for entry in fields(config):  # type: ignore[arg-type]
        name, value = entry.name, getattr(config, entry.name)
        choices = {"activation": ACTIVATIONS, "scaling": SCALINGS}.get(name)
        if entry.type is bool:
            is_valid, expected = type(value) is bool, _("true or false")
        elif choices:
            is_valid, expected = value in choices, _("one of {words}", words=", ".join(choices))
        elif entry.type is int:
            low, high = 0 if name in _MAY_BE_ZERO else 1, _MAX_BY_FIELD.get(name, _MAX_OTHER)
            is_valid, expected = (
                type(value) is int and low <= value <= high,
                _("from {low} to {high:,}", low=low, high=high),
            )
        elif entry.type is float:
            is_valid, expected = (
                type(value) in (int, float) and 0 < value < 1e12,
                _("a number above 0"),
            )
        else:
            continue
        if not is_valid:
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name=name,
                    wanted=expected,
                    value=safe_line(repr(value)),
                )
            )


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (RoPE, Su et al. 2021): pairs of dimensions rotate by position.

    Pair i of the n pairs of a head rotates by theta^(−i/n) radians per position. Raises UserError
    for values that make no sense.
    """

    theta: float = 10_000.0
    rotary_pct: float = 1.0  # share of each head's dimensions that rotate, the first ones
    # linear: all frequencies divided by `factor`; llama3: only the low ones, as in Llama 3.1
    scaling: str = "none"
    factor: float = 1.0
    # llama3: pairs with fewer rotations than this within the original context are slowed,
    low_freq_factor: float = 1.0
    # those with more rotations than this are not, and those between partly
    high_freq_factor: float = 4.0
    # the context that the model was first trained with
    original_max_position_embeddings: int = 8_192

    def __post_init__(self) -> None:
        _check(self)
        if self.rotary_pct > 1 or self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                _(
                    "inconsistent RoPE settings: rotary_pct {share:g}, low_freq_factor "
                    "{low:g}, high_freq_factor {high:g}",
                    share=self.rotary_pct,
                    low=self.low_freq_factor,
                    high=self.high_freq_factor,
                )
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every family has. Raises UserError for sizes that make no model."""

    arch: ClassVar[str]

    vocab_size: int  # number of different tokens
    context_length: int = 32  # tokens that the model sees at once
    d_model: int = 64  # numbers per token in the residual stream
    n_layers: int = 4  # blocks of attention and MLP
    n_heads: int = 4  # attention heads per layer

    def __post_init__(self) -> None:
        _check(self)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        raise NotImplementedError

    @property
    def n_params(self) -> int:
        """The number of trainable parameters."""
        return sum(math.prod(shape) for _name, shape in self.shapes())


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelConfig):
    """A GPT: LayerNorm, a plain MLP.

    The defaults are the study note's; GPT-2 and GPT-NeoX differ in details.
    """

    arch: ClassVar[str] = "gpt"
    has_gated_mlp: ClassVar[bool] = False
    sliding_windows: ClassVar[tuple[int, ...]] = ()

    d_mlp: int = 0  # numbers per token inside the MLP; 0 becomes 4 * d_model
    activation: str = "gelu"
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    lm_head_bias: bool = True
    tie_word_embeddings: bool = False  # the unembedding is the token embedding
    rope: Rope | None = None  # instead of one learned vector per position
    # attention and MLP read the same residual stream (GPT-NeoX), not one after the other
    parallel_residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.d_mlp:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        if not isinstance(self.rope, Rope | None):
            raise UserError(_("unknown RoPE settings: {value}", value=printable(self.rope)))
        if self.d_model % self.n_heads:
            raise UserError(
                _(
                    "d_model {width} is not divisible by {heads} heads",
                    width=self.d_model,
                    heads=self.n_heads,
                )
            )
        rotary_dim = int(self.head_dim * self.rope.rotary_pct) if self.rope is not None else 2
        # In an odd number of dimensions, the last one rotates with one more.
        if rotary_dim < 1 or rotary_dim + rotary_dim % 2 > self.head_dim:
            raise UserError(
                _(
                    "RoPE cannot rotate {turning} of {head_size} dimensions in pairs",
                    turning=rotary_dim,
                    head_size=self.head_dim,
                )
            )
        if self.tie_word_embeddings and self.lm_head_bias:
            raise UserError(_("an output head tied to the token embedding has no bias"))

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """The number of heads with keys and values of their own: all."""
        return self.n_heads

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        d_model, d_mlp = self.d_model, self.d_mlp
        yield "token_embedding.weight", (self.vocab_size, d_model)
        if self.rope is None:
            yield "position_embedding.weight", (self.context_length, d_model)
        for layer in range(self.n_layers):
            block = f"blocks.{layer}."
            yield from _with_bias(block + "ln1", d_model)
            yield from _with_bias(block + "attention.qkv", 3 * d_model, d_model, bias=self.qkv_bias)
            yield from _with_bias(block + "attention.proj", d_model, d_model)
            yield from _with_bias(block + "ln2", d_model)
            yield from _with_bias(block + "mlp.up", d_mlp, d_model)
            yield from _with_bias(block + "mlp.down", d_model, d_mlp)
        yield from _with_bias("ln_f", d_model)
        if not self.tie_word_embeddings:
            yield from _with_bias("lm_head", self.vocab_size, d_model, bias=self.lm_head_bias)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """A Llama: RMSNorm, RoPE, a gated MLP, fewer KV heads than query heads.

    Mistral, Qwen 2 and Qwen 3 differ in details.
    """

    arch: ClassVar[str] = "llama"
    has_gated_mlp: ClassVar[bool] = True
    parallel_residual: ClassVar[bool] = False

    n_kv_heads: int  # each key and value serves n_heads / n_kv_heads queries
    head_dim: int  # numbers per head; n_heads · head_dim may differ from d_model
    d_mlp: int  # numbers per token inside the MLP
    activation: str = "silu"
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    tie_word_embeddings: bool = False  # the unembedding is the token embedding
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # each query and key is normalised, as in Qwen 3
    # tokens that each layer sees, the present one included; 0: all of them; (): all layers see all
    sliding_windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rope, Rope):
            raise UserError(_("unknown RoPE settings: {value}", value=printable(self.rope)))
        if (
            self.d_mlp < 1
            or self.n_heads % self.n_kv_heads
            or self.head_dim % 2
            or self.rope.rotary_pct != 1
        ):
            raise UserError(
                _(
                    "these sizes do not fit together: {heads} heads of dimension "
                    "{head_size}, {kv_heads} KV heads, MLP width {hidden}",
                    heads=self.n_heads,
                    head_size=self.head_dim,
                    kv_heads=self.n_kv_heads,
                    hidden=self.d_mlp,
                )
            )
        is_valid = isinstance(self.sliding_windows, tuple) and all(
            type(window) is int and window >= 0 for window in self.sliding_windows
        )
        if not is_valid or len(self.sliding_windows) not in (0, self.n_layers):
            raise UserError(
                _(
                    "sliding_windows must be {layers} integers, not {value}",
                    layers=self.n_layers,
                    value=printable(self.sliding_windows),
                )
            )

    @property
    def q_dim(self) -> int:
        """Rows of the fused projection that make queries; keys and values follow."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of the fused projection that make keys, and as many that make values."""
        return self.n_kv_heads * self.head_dim

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        d_model = self.d_model
        yield "token_embedding.weight", (self.vocab_size, d_model)
        for layer in range(self.n_layers):
            block = f"blocks.{layer}."
            yield block + "norm1.weight", (d_model,)
            rows = self.q_dim + 2 * self.kv_dim
            yield from _with_bias(block + "attention.qkv", rows, d_model, bias=self.qkv_bias)
            if self.qk_norm:
                yield block + "attention.q_norm.weight", (self.head_dim,)
                yield block + "attention.k_norm.weight", (self.head_dim,)
            yield from _with_bias(block + "attention.proj", d_model, self.q_dim, bias=self.out_bias)
            yield block + "norm2.weight", (d_model,)
            yield from _with_bias(
                block + "mlp.gate_up", 2 * self.d_mlp, d_model, bias=self.mlp_bias
            )
            yield from _with_bias(block + "mlp.down", d_model, self.d_mlp, bias=self.mlp_bias)
        yield "norm_f.weight", (d_model,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, d_model)


AnyConfig = GPTConfig | LlamaConfig


def _with_bias(name: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".weight", shape
    if bias:
        yield name + ".bias", shape[:1]


def printable(data: Any) -> str:
    """Return the start of untrusted data, for a message."""
    return f"{safe_line(str(data)):.120}"
