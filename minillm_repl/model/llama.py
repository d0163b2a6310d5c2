"""Llama, top to bottom: embedding, blocks of attention and gated MLP, an output head.

Llama 2 and 3, SmolLM 2, TinyLlama, Mistral, Qwen 2 and Qwen 3 are all of this family; the config
has the differences.

Shapes at the ends of lines use b = batch, t = time (positions), w = d_model, h = heads, g = KV
heads, d = head_dim, v = vocabulary.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor, nn

from minillm_repl.model.attention import ACTIVATION_FUNCTIONS, KVCache, attend
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.hooks import Hook, no_hook
from minillm_repl.model.layers import Embedding, Linear, linear_float32
from minillm_repl.model.rope import CosSin, apply_rotary_emb, compute_cos_sin


class RMSNorm(nn.Module):
    """Divides by the root mean square, and scales; unlike LayerNorm it subtracts no mean.

    torch's own RMSNorm scales before it rounds to 16 bits. These models were trained with the
    rounding first, so the scale is a product of its own here.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, in float32 at least."""
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=self.eps)


class LlamaAttention(nn.Module):
    """Self-attention: the query of each position attends to the keys up to that position.

    The result is the mean of their values, weighted by the attention.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.sliding_window = config.sliding_windows[layer] if config.sliding_windows else 0
        self.qkv = Linear(config.d_model, config.q_dim + 2 * config.kv_dim, bias=config.qkv_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.proj = Linear(config.q_dim, config.d_model, bias=config.out_bias)

    def forward(self, x: Tensor, cos_sin: CosSin, cache: KVCache | None, hook: Hook) -> Tensor:
        """Mix information between positions: (b, t, w) -> (b, t, w)."""
        name, config = f"blocks.{self.layer}.attention.", self.config
        # One product makes the queries, then the keys, then the values.
        heads = self.qkv(x).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)  # (b, h+g+g, t, d)
        qk, v = heads.tensor_split((config.n_heads + config.n_kv_heads,), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.tensor_split((config.n_heads,), dim=1)  # (b, h, t, d) and (b, g, t, d)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)  # (b, h+g, t, d)
        qk = apply_rotary_emb(qk, cos_sin)  # (b, h+g, t, d)
        q, k = qk.tensor_split((config.n_heads,), dim=1)  # (b, h, t, d) and (b, g, t, d)
        q, k, v = hook(name + "q", q), hook(name + "k", k), hook(name + "v", v)
        mask = None
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (b, g, past + t, d)
            mask = cache.mask(self.sliding_window)
        z = attend(q, k, v, self.sliding_window, mask).transpose(1, 2)  # (b, t, h, d)
        z = hook(name + "z", z)  # (b, t, h, d)
        return hook(name + "out", self.proj(z.flatten(2)))  # (b, t, h*d) -> (b, t, w)


class LlamaMLP(nn.Module):
    """The MLP with a gate (SwiGLU): activation(gate) × up, then back to the width of the model."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate_up = Linear(config.d_model, 2 * config.d_mlp, bias=config.mlp_bias)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.down = Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)

    def forward(self, x: Tensor, hook: Hook) -> Tensor:
        """Map each position on its own: (b, t, w) -> (b, t, w)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each (b, t, d_mlp)
        hidden = self.activation(gate) * up  # (b, t, d_mlp)
        hidden = hook(f"blocks.{self.layer}.mlp.hidden", hidden)
        return hook(f"blocks.{self.layer}.mlp.out", self.down(hidden))  # (b, t, w)


class LlamaBlock(nn.Module):
    """Attention, then the MLP: each reads a normalised copy, and adds to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm1 = RMSNorm(config.d_model, config.norm_eps)
        self.attention = LlamaAttention(config, layer)
        self.norm2 = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = LlamaMLP(config, layer)

    def forward(self, x: Tensor, cos_sin: CosSin, cache: KVCache | None, hook: Hook) -> Tensor:
        """Add what this block finds to the residual stream: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}.residual"
        attention_out = self.attention(self.norm1(x), cos_sin, cache, hook)  # (b, t, w)
        x = hook(name + ".mid", x + attention_out)  # (b, t, w)
        return hook(name, x + self.mlp(self.norm2(x), hook))  # (b, t, w)


class Llama(nn.Module):
    """Token ids in; out, for each position, the logits of the next token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(LlamaBlock(config, layer) for layer in range(config.n_layers))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.d_model, config.vocab_size, bias=False)
        )

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        hook: Hook = no_hook,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Return logits (b, t, v) for ids (b, t); with `last_only`, of the last position (b, 1, v).

        With a cache, `ids` follow the tokens in it, and join them; all must fit the context.
        """
        if cache is None:
            positions = torch.arange(ids.shape[1], device=ids.device)  # (t,)
        else:
            positions = cache.positions(ids.shape[1])  # (t,)
        x = hook("embedding", self.token_embedding(ids))  # (b, t, w)
        cos_sin = compute_cos_sin(self.config.rope, self.config.head_dim, positions, x.dtype)
        for block in self.blocks:
            x = block(x, cos_sin, cache, hook)  # (b, t, w)
        if cache is not None:
            cache.length += ids.shape[1]  # the layers have stored their keys and values
        if last_only:
            x = x[:, -1:]  # (b, 1, w)
        return self.unembed(x, hook)

    def unembed(self, residual: Tensor, hook: Hook = no_hook) -> Tensor:
        """Return the logits of a residual stream, the last norm included: (..., w) -> (..., v)."""
        x = hook("final", self.norm_f(residual))  # (..., w)
        if self.lm_head is None:
            return linear_float32(x, self.token_embedding.weight)  # (..., v)
        return self.lm_head(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def initialise(self) -> "Llama":
        """Set fresh weights from torch's global random state, and return the model.

        As in GPT, what adds to the residual stream starts at zero, and so does the head, so the
        first loss is exactly ln(vocabulary). A head that is the embedding cannot be zero; it starts
        small.
        """
        nn.init.normal_(self.token_embedding.weight, std=0.02 if self.lm_head is None else 0.5)
        for module in self.modules():
            if isinstance(module, LlamaAttention):
                nn.init.normal_(module.qkv.weight, std=self.config.d_model**-0.5)
                nn.init.zeros_(module.proj.weight)
            elif isinstance(module, LlamaMLP):
                nn.init.normal_(module.gate_up.weight, std=self.config.d_model**-0.5)
                nn.init.zeros_(module.down.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.lm_head is not None:
            nn.init.zeros_(self.lm_head.weight)
        return self
