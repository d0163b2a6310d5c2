"""GPT, top to bottom: embeddings, blocks of attention and MLP, an output head.

The study note's MiniLLM, GPT-2 and GPT-NeoX are of this family; the config has the differences.

Shapes at the ends of lines use b = batch, t = time (positions), w = d_model, h = heads, d =
head_dim, v = vocabulary.
"""

import torch
from torch import Tensor, nn

from minillm_repl.model.attention import ACTIVATION_FUNCTIONS, KVCache, attend_hooked
from minillm_repl.model.config import GPTConfig
from minillm_repl.model.hooks import Hook, no_hook
from minillm_repl.model.layers import Embedding, Linear, linear_float32
from minillm_repl.model.rope import CosSin, apply_rotary_emb, compute_cos_sin


class Attention(nn.Module):
    """Self-attention: the query of each position attends to the keys up to that position.

    The result is the mean of their values, weighted by the attention.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=config.qkv_bias)
        self.proj = Linear(config.d_model, config.d_model)

    def forward(
        self, x: Tensor, cos_sin: CosSin | None, cache: KVCache | None, hook: Hook
    ) -> Tensor:
        """Mix information between positions: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}.attention."
        shape = (3, self.config.n_heads, self.config.head_dim)
        heads = self.qkv(x).unflatten(-1, shape)  # (b, t, 3, h, d)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        if cos_sin is not None:
            q, k = apply_rotary_emb(q, cos_sin), apply_rotary_emb(k, cos_sin)
        q, k, v = hook(name + "q", q), hook(name + "k", k), hook(name + "v", v)
        mask = None
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (b, h, past + t, d)
            mask = cache.mask(0)
        pattern = name + "pattern"
        z = attend_hooked(q, k, v, self.config, mask=mask, hook=hook, name=pattern)  # (b, h, t, d)
        z = z.transpose(1, 2)  # (b, t, h, d)
        z = hook(name + "z", z)  # (b, t, h, d)
        return hook(name + "out", self.proj(z.flatten(2)))  # (b, t, h*d) -> (b, t, w)


class MLP(nn.Module):
    """The MLP: up-projection, activation, down-projection, each position on its own."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.up = Linear(config.d_model, config.d_mlp)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.down = Linear(config.d_mlp, config.d_model)

    def forward(self, x: Tensor, hook: Hook) -> Tensor:
        """Map each position on its own: (b, t, w) -> (b, t, w)."""
        x = hook(f"blocks.{self.layer}.mlp.in", x)
        hidden = self.activation(self.up(x))  # (b, t, d_mlp)
        hidden = hook(f"blocks.{self.layer}.mlp.hidden", hidden)
        return hook(f"blocks.{self.layer}.mlp.out", self.down(hidden))  # (b, t, w)


class Block(nn.Module):
    """Attention, then the MLP: each reads a normalised copy, and adds to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.parallel_residual = layer, config.parallel_residual
        self.ln1 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ln2 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config, layer)

    def forward(
        self, x: Tensor, cos_sin: CosSin | None, cache: KVCache | None, hook: Hook
    ) -> Tensor:
        """Add what this block finds to the residual stream: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}.residual"
        attention_out = self.attention(self.ln1(x), cos_sin, cache, hook)  # (b, t, w)
        if self.parallel_residual:  # Both read the same stream: there is none between them.
            return hook(name, self.mlp(self.ln2(x), hook) + attention_out + x)
        x = hook(name + ".mid", x + attention_out)  # (b, t, w)
        return hook(name, x + self.mlp(self.ln2(x), hook))  # (b, t, w)


class GPT(nn.Module):
    """Token ids in; out, for each position, the logits of the next token."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model)
        self.position_embedding = (
            Embedding(config.context_length, config.d_model) if config.rope is None else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, config.norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.d_model, config.vocab_size, bias=config.lm_head_bias)
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
        hook("positions", positions)
        x, cos_sin = self.token_embedding(ids), None  # (b, t, w)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)  # (b, t, w)
        elif self.config.rope is not None:
            cos_sin = compute_cos_sin(self.config.rope, self.config.head_dim, positions, x.dtype)
        x = hook("embedding", x)
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

    @property
    def norm_f(self) -> nn.LayerNorm:
        """The last norm, by the name that it has in every family."""
        return self.ln_f

    @torch.no_grad()
    def initialise(self) -> "GPT":
        """Set fresh weights from torch's global random state, and return the model.

        What adds to the residual stream starts at zero. So every block passes its input on at
        first, and the gradient reaches all of them. The unembedding starts at zero too, so the
        first loss is exactly ln(vocabulary).
        """
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.qkv.weight, std=self.config.d_model**-0.5)
                if self.config.qkv_bias:
                    nn.init.zeros_(module.qkv.bias)
                _init_zeros(module.proj)
            elif isinstance(module, MLP):
                nn.init.normal_(module.up.weight, std=self.config.d_model**-0.5)
                nn.init.zeros_(module.up.bias)
                _init_zeros(module.down)
        if self.lm_head is not None:
            _init_zeros(self.lm_head)
        return self


def _init_zeros(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
