"""The config of a Llama and all its relatives: every way in which they differ is a field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config_base import NO_SCALING, ModelConfig, Rope, printable, with_bias

CANON_TOKENS = 4  # that a Canon layer mixes: a token and the three before it
MAX_CONV_TOKENS = CANON_TOKENS  # that a short convolution mixes: the cache keeps as many
# Experts of all layers together: above the largest models of today, and few enough that a hostile
# file makes no list that fills the memory.
_MAX_EXPERTS = 65_536


def is_convolution(name: str) -> bool:
    """Tell whether a tensor is of a convolution: its rows are tokens, not those of a matrix."""
    return ".canon" in name or ".taps" in name


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

    # -- mixtures of experts (Qwen 3 MoE, OLMoE, Granite MoE): a router chooses MLPs for each token
    n_experts: int = 0  # in each layer that has them; 0: every MLP is dense
    n_experts_per_tok: int = 0  # those with the largest router logits
    d_expert: int = 0  # numbers per token inside an expert
    # the weights of the chosen ones, a softmax over all experts, are divided by their sum
    norm_topk_prob: bool = False
    routed_layers: tuple[bool, ...] = ()  # whether each layer has experts; (): all have

    # -- short convolutions in the place of attention (LFM2)
    conv_layers: tuple[bool, ...] = ()  # whether each layer has one; (): none has
    conv_tokens: int = 3  # that it mixes: a token and those before it

    # -- multipliers (Granite, Gemma)
    embedding_multiplier: float = 1.0  # of the token embedding
    residual_multiplier: float = 1.0  # of what attention and MLP add
    attention_multiplier: float = 0.0  # of q·k; 0: 1/√head_dim
    logits_scaling: float = 1.0  # logits are divided by this
    attention_softcap: float = 0.0  # c: a score s becomes c · tanh(s/c) (Gemma 2); 0: it stays
    logit_softcap: float = 0.0  # the same for the logits
    qkv_clip: float = 0.0  # queries, keys and values stay within ± this (OLMoE); 0: they stay

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
        self._check_per_layer("routed_layers", bool)
        self._check_per_layer("conv_layers", bool)
        self._check_experts()
        if any(self.conv_layers) and (
            all(self.conv_layers)
            or self.conv_tokens > MAX_CONV_TOKENS
            or self.norm_placement != "pre"
            or self.has_canon_layers
        ):
            raise UserError(
                _(
                    "short convolutions of {count:,} tokens in {layers:,} of {all:,} layers are "
                    "not supported",
                    count=self.conv_tokens,
                    layers=sum(self.conv_layers),
                    all=self.n_layers,
                )
            )

    def _check_experts(self) -> None:
        """Raise UserError for a mixture of experts whose sizes do not fit together."""
        experts, chosen = self.n_experts, self.n_experts_per_tok
        if not experts and not chosen and not self.d_expert and not self.routed_layers:
            return
        if (
            not 1 <= chosen <= experts
            or self.d_expert < 1
            or experts * self.n_layers > _MAX_EXPERTS
            or self.norm_placement != "pre"
            or self.has_canon_layers
        ):
            raise UserError(
                _(
                    "these sizes make no mixture of experts: {experts:,} experts in {layers:,} "
                    "layers, of which {chosen:,} are chosen, of width {width:,}",
                    experts=experts,
                    layers=self.n_layers,
                    chosen=chosen,
                    width=self.d_expert,
                )
            )

    def is_conv(self, layer: int) -> bool:
        """Tell whether a layer has a short convolution in the place of attention."""
        return bool(self.conv_layers) and self.conv_layers[layer]

    def is_routed(self, layer: int) -> bool:
        """Tell whether the MLP of a layer is a mixture of experts."""
        return self.n_experts > 0 and (not self.routed_layers or self.routed_layers[layer])

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
            yield from (
                self._conv_shapes(layer) if self.is_conv(layer) else (self._attention_shapes(layer))
            )
            if post:
                yield block + "post_norm1.weight", (d_model,)
            if pre:
                yield block + "norm2.weight", (d_model,)
            if self.has_canon_layers:
                yield block + "canon2.weight", (CANON_TOKENS, d_model)
            yield from self._mlp_shapes(layer)
            if post:
                yield block + "post_norm2.weight", (d_model,)
        yield "norm_f.weight", (d_model,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, d_model)

    def _attention_shapes(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        block, d_model = f"blocks.{layer}.attention.", self.d_model
        rows = self.q_dim + 2 * self.kv_dim
        yield from with_bias(block + "qkv", rows, d_model, bias=self.qkv_bias)
        if self.qk_norm:
            yield block + "q_norm.weight", (self.qk_norm_dims[0],)
            yield block + "k_norm.weight", (self.qk_norm_dims[1],)
        yield from with_bias(block + "proj", d_model, self.q_dim, bias=self.out_bias)

    def _conv_shapes(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        block, d_model = f"blocks.{layer}.conv.", self.d_model
        yield block + "gates.weight", (3 * d_model, d_model)
        yield block + "taps.weight", (self.conv_tokens, d_model)
        yield block + "proj.weight", (d_model, d_model)

    def _mlp_shapes(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        block, is_routed = f"blocks.{layer}.mlp.", self.is_routed(layer)
        d_hidden = self.d_expert if is_routed else self.d_mlp
        if is_routed:
            yield block + "router.weight", (self.n_experts, self.d_model)
        for mlp in (
            (f"{block}experts.{expert}." for expert in range(self.n_experts))
            if is_routed
            else (block,)
        ):
            yield from with_bias(mlp + "gate_up", 2 * d_hidden, self.d_model, bias=self.mlp_bias)
            yield from with_bias(mlp + "down", self.d_model, d_hidden, bias=self.mlp_bias)


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
