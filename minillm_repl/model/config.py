"""The sizes of the models, and the names and shapes of their tensors; needs no torch.

GPT is here; config_llama.py has Llama and its relatives.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config_base import ACTIVATIONS, ModelConfig, Rope, printable, with_bias
from minillm_repl.model.config_llama import (
    CANON_TOKENS,
    CanonConfig,
    LlamaConfig,
    is_convolution,
)

__all__ = [
    "ACTIVATIONS",
    "CANON_TOKENS",
    "CONFIGS",
    "AnyConfig",
    "CanonConfig",
    "GPTConfig",
    "LlamaConfig",
    "ModelConfig",
    "Rope",
    "is_convolution",
    "printable",
]


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
    qkv_clip: ClassVar[float] = 0.0
    n_experts: ClassVar[int] = 0

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

    def is_routed(self, _layer: int) -> bool:
        """Tell whether the MLP of a layer is a mixture of experts: none is."""
        return False

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


AnyConfig = GPTConfig | LlamaConfig | CanonConfig
CONFIGS: dict[str, type[AnyConfig]] = {
    each.arch: each for each in (GPTConfig, LlamaConfig, CanonConfig)
}
