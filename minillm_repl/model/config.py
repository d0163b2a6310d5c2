"""The sizes of the models, and the names and shapes of their tensors; needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config_base import (
    ACTIVATIONS,
    NO_SCALING,
    ModelConfig,
    Rope,
    printable,
    with_bias,
)

__all__ = [
    "ACTIVATIONS",
    "CONFIGS",
    "AnyConfig",
    "CanonConfig",
    "GPTConfig",
    "LlamaConfig",
    "ModelConfig",
    "Rope",
    "printable",
]

CANON_TOKENS = 4  # that a Canon layer mixes: a token and the three before it


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelConfig):
    """A GPT: LayerNorm, a plain MLP.

    The defaults are the study note's; GPT-2 and GPT-NeoX differ in details.
    """

    arch: ClassVar[str] = "gpt"
    has_gated_mlp: ClassVar[bool] = False
    has_canon_layers: ClassVar[bool] = False
    sliding_windows: ClassVar[tuple[int, ...]] = ()
    embedding_multiplier: ClassVar[float] = 1.0
    residual_multiplier: ClassVar[float] = 1.0
    logits_scaling: ClassVar[float] = 1.0
    attention_softcap: ClassVar[float] = 0.0
    logit_softcap: ClassVar[float] = 0.0
    norm_plus_one: ClassVar[bool] = False
    norm_placement: ClassVar[str] = "pre"
    qk_norm_per_head: ClassVar[bool] = True

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
        if self.rope is not None:
            self.rope.check_fits(self.head_dim)
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

    @property
    def attention_scale(self) -> float:
        """What q·k is multiplied by."""
        return float(self.head_dim**-0.5)

    def layer_ropes(self) -> tuple[Rope | None, ...]:
        """Return the RoPE of each layer: the same for all."""
        return (self.rope,) * self.n_layers

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        d_model, d_mlp = self.d_model, self.d_mlp
        yield "token_embedding.weight", (self.vocab_size, d_model)
        if self.rope is None:
            yield "position_embedding.weight", (self.context_length, d_model)
        for layer in range(self.n_layers):
            block = f"blocks.{layer}."
            yield from with_bias(block + "ln1", d_model)
            yield from with_bias(block + "attention.qkv", 3 * d_model, d_model, bias=self.qkv_bias)
            yield from with_bias(block + "attention.proj", d_model, d_model)
            yield from with_bias(block + "ln2", d_model)
            yield from with_bias(block + "mlp.up", d_mlp, d_model)
            yield from with_bias(block + "mlp.down", d_model, d_mlp)
        yield from with_bias("ln_f", d_model)
        if not self.tie_word_embeddings:
            yield from with_bias("lm_head", self.vocab_size, d_model, bias=self.lm_head_bias)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """A Llama: RMSNorm, RoPE, a gated MLP, fewer KV heads than query heads.

    Its relatives, from Mistral to Gemma, differ in details: every detail is a field here. The
    defaults are Llama's.
    """

    arch: ClassVar[str] = "llama"
    has_gated_mlp: ClassVar[bool] = True
    has_canon_layers: ClassVar[bool] = False
    parallel_residual: ClassVar[bool] = False

    n_kv_heads: int  # each key and value serves n_heads / n_kv_heads queries
    head_dim: int  # numbers per head; n_heads · head_dim may differ from d_model
    d_mlp: int  # numbers per token inside the MLP
    activation: str = "silu"
    tie_word_embeddings: bool = False  # the unembedding is the token embedding
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    # -- norms
    norm_eps: float = 1e-5
    # pre: attention and MLP read a normalised copy; post: what they add is normalised; or both
    norm_placement: str = "pre"
    norm_plus_one: bool = False  # norms multiply by 1 + weight (Gemma)
    qk_norm: bool = False  # queries and keys are normalised (Qwen 3)
    qk_norm_per_head: bool = True  # each by itself, or all heads of a token together (OLMo 2)

    # -- positions
    rope: Rope = NO_SCALING
    sliding_rope: Rope | None = None  # of the layers with a window, if it is another (Gemma 3)
    rope_layers: tuple[bool, ...] = ()  # whether each layer has RoPE; (): all have (SmolLM3)
    # tokens that each layer sees, the present one included; 0: all of them; (): all layers see all
    sliding_windows: tuple[int, ...] = ()

    # -- multipliers (Granite, Gemma)
    embedding_multiplier: float = 1.0  # of the token embedding
    residual_multiplier: float = 1.0  # of what attention and MLP add
    attention_multiplier: float = 0.0  # of q·k; 0: 1/√head_dim
    logits_scaling: float = 1.0  # logits are divided by this
    attention_softcap: float = 0.0  # c: a score s becomes c · tanh(s/c) (Gemma 2); 0: it stays
    logit_softcap: float = 0.0  # the same for the logits

    def __post_init__(self) -> None:
        super().__post_init__()
        for rope in (self.rope, self.sliding_rope or self.rope):
            if not isinstance(rope, Rope):
                raise UserError(_("unknown RoPE settings: {value}", value=printable(rope)))
        self.rope.check_fits(self.head_dim)
        if (
            self.d_mlp < 1
            or self.n_heads % self.n_kv_heads
            or (self.sliding_rope or self.rope).rotary_pct != self.rope.rotary_pct
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
        self._check_per_layer("sliding_windows", int)
        self._check_per_layer("rope_layers", bool)

    def _check_per_layer(self, name: str, kind: type) -> None:
        """Raise UserError unless a field has one value of a kind for each layer, or none."""
        values = getattr(self, name)
        is_valid = isinstance(values, tuple) and all(type(value) is kind for value in values)
        if is_valid and len(values) in (0, self.n_layers) and min(values, default=0) >= 0:
            return
        wanted = (
            _("{layers} integers", layers=self.n_layers)
            if kind is int
            else _("{layers} times true or false", layers=self.n_layers)
        )
        raise UserError(
            _(
                "{name} must be {wanted}, not {value:.40}",
                name=name,
                wanted=wanted,
                value=printable(values),
            )
        )

    @property
    def attention_scale(self) -> float:
        """What q·k is multiplied by."""
        return self.attention_multiplier or float(self.head_dim**-0.5)

    def layer_ropes(self) -> tuple[Rope | None, ...]:
        """Return the RoPE of each layer; None where queries and keys are not rotated."""
        windows = self.sliding_windows or (0,) * self.n_layers
        rotated = self.rope_layers or (True,) * self.n_layers
        sliding_rope = self.sliding_rope or self.rope
        return tuple(
            (sliding_rope if window else self.rope) if is_rotated else None
            for window, is_rotated in zip(windows, rotated, strict=True)
        )

    @property
    def q_dim(self) -> int:
        """Rows of the fused projection that make queries; keys and values follow."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of the fused projection that make keys, and as many that make values."""
        return self.n_kv_heads * self.head_dim

    @property
    def qk_norm_dims(self) -> tuple[int, int]:
        """The numbers that the norm of the queries is over, and that of the keys."""
        return (self.head_dim,) * 2 if self.qk_norm_per_head else (self.q_dim, self.kv_dim)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        d_model = self.d_model
        pre, post = self.norm_placement != "post", self.norm_placement != "pre"
        yield "token_embedding.weight", (self.vocab_size, d_model)
        for layer in range(self.n_layers):
            block = f"blocks.{layer}."
            if pre:
                yield block + "norm1.weight", (d_model,)
            if self.has_canon_layers:
                yield block + "canon1.weight", (CANON_TOKENS, d_model)
            rows = self.q_dim + 2 * self.kv_dim
            yield from with_bias(block + "attention.qkv", rows, d_model, bias=self.qkv_bias)
            if self.qk_norm:
                yield block + "attention.q_norm.weight", (self.qk_norm_dims[0],)
                yield block + "attention.k_norm.weight", (self.qk_norm_dims[1],)
            yield from with_bias(block + "attention.proj", d_model, self.q_dim, bias=self.out_bias)
            if post:
                yield block + "post_norm1.weight", (d_model,)
            if pre:
                yield block + "norm2.weight", (d_model,)
            if self.has_canon_layers:
                yield block + "canon2.weight", (CANON_TOKENS, d_model)
            yield from with_bias(block + "mlp.gate_up", 2 * self.d_mlp, d_model, bias=self.mlp_bias)
            yield from with_bias(block + "mlp.down", d_model, self.d_mlp, bias=self.mlp_bias)
            if post:
                yield block + "post_norm2.weight", (d_model,)
        yield "norm_f.weight", (d_model,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, d_model)


@dataclass(frozen=True, kw_only=True)
class CanonConfig(LlamaConfig):
    """A Llama with Canon layers before attention and MLP (Allen-Zhu 2025), the default here.

    They learn faster at this size (docs/performance.md). No program but this one knows them.
    """

    arch: ClassVar[str] = "canon"
    has_canon_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_placement != "pre":
            raise UserError(
                _("Canon layers need norm_placement = pre, not {value}", value=self.norm_placement)
            )


AnyConfig = GPTConfig | LlamaConfig | CanonConfig
CONFIGS: dict[str, type[AnyConfig]] = {
    each.arch: each for each in (GPTConfig, LlamaConfig, CanonConfig)
}
