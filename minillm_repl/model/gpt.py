"""GPT, top to bottom: embeddings, blocks of attention and feed-forward, an output head.

The study note's MiniLLM, GPT-2 and GPT-NeoX are all of this family; the config says in what they
differ.

Shapes at the ends of lines use b = batch, t = time (positions), w = width, h = head, d = head_size,
v = vocabulary.
"""

import torch
from torch import Tensor, nn

from minillm_repl.model.attention import ACTIVATION, attend
from minillm_repl.model.config import GPTConfig
from minillm_repl.model.hooks import Tap, untapped
from minillm_repl.model.kv_cache import KVCache
from minillm_repl.model.layers import Embedding, Linear, multiply
from minillm_repl.model.rope import Rotation, rotate, rotation


class Attention(nn.Module):
    """Every position asks (query), every earlier one answers (key) and hands over what it knows
    (value).
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, turn: Rotation | None, cache: KVCache | None, tap: Tap) -> Tensor:
        """Mix information between positions: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}.attention."
        # (b, t, 3, h, d)
        heads = self.qkv(x).unflatten(-1, (3, self.config.heads, self.config.head_size))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        q, k, v = tap(name + "q", q), tap(name + "k", k), tap(name + "v", v)
        mask = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (b, h, past + t, d)
            mask = cache.mask(0)
        z = tap(name + "z", attend(q, k, v, mask=mask).transpose(1, 2))  # (b, t, h, d)
        return tap(name + "out", self.proj(z.flatten(2)))


class FeedForward(nn.Module):
    """Each position thinks by itself: wider, a bend, and back."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.up = Linear(config.width, config.ff_width)
        self.activation = ACTIVATION[config.activation]
        self.down = Linear(config.ff_width, config.width)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Map each position on its own: (b, t, w) -> (b, t, w)."""
        # (b, t, ff_width)
        hidden = tap(f"blocks.{self.layer}.ff.hidden", self.activation(self.up(x)))
        return tap(f"blocks.{self.layer}.ff.out", self.down(hidden))


class Block(nn.Module):
    """One storey: attention, then feed-forward, each reading a normalised copy and adding to the
    residual stream.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.parallel = layer, config.parallel
        self.ln1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ln2 = nn.LayerNorm(config.width, config.norm_eps)
        self.ff = FeedForward(config, layer)

    def forward(self, x: Tensor, turn: Rotation | None, cache: KVCache | None, tap: Tap) -> Tensor:
        """Add what this block finds to the residual stream: (b, t, w) -> (b, t, w)."""
        mixed = self.attention(self.ln1(x), turn, cache, tap)
        if self.parallel:  # both read what came in, so there is no stream between them
            return tap(f"blocks.{self.layer}.residual", self.ff(self.ln2(x), tap) + mixed + x)
        x = tap(f"blocks.{self.layer}.residual.mid", x + mixed)
        return tap(f"blocks.{self.layer}.residual", x + self.ff(self.ln2(x), tap))


class GPT(nn.Module):
    """Token ids in, for every position the logits of the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab, config.width)
        self.position_embedding = (
            Embedding(config.context, config.width) if config.rope is None else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, config.norm_eps)
        self.lm_head = (
            None if config.tied else Linear(config.width, config.vocab, bias=config.head_bias)
        )

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, tap: Tap = untapped, *, last: bool = False
    ) -> Tensor:
        """Return logits (b, t, v) for token ids (b, t); with `last`, for the last position only (b,
        1, v).

        With a cache, `ids` follow the tokens already in it, and join them; positions + cache must
        fit the context.
        """
        positions = (
            torch.arange(ids.shape[1], device=ids.device)
            if cache is None
            else cache.positions(ids.shape[1])
        )
        x, turn = self.token_embedding(ids), None  # (b, t, w)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        elif self.config.rope is not None:
            turn = rotation(self.config.rope, self.config.head_size, positions, x.dtype)
        x = tap("embedding", x)
        for block in self.blocks:
            x = block(x, turn, cache, tap)
        if cache is not None:
            cache.length += ids.shape[1]
        if last:
            x = x[:, -1:]
        return self.unembed(x, tap)

    def unembed(self, residual: Tensor, tap: Tap = untapped) -> Tensor:
        """Return the logits that a residual stream amounts to, the last norm included: (..., w)
        -> (..., v).
        """
        x = tap("final", self.norm_f(residual))
        return multiply(x, self.token_embedding.weight) if self.lm_head is None else self.lm_head(x)

    @property
    def norm_f(self) -> nn.LayerNorm:
        """The last norm, by the name that it has in every family."""
        return self.ln_f

    @torch.no_grad()
    def initialise(self) -> "GPT":
        """Set fresh weights from torch's global random state, and return the model.

        Whatever adds to the residual stream starts at zero, so every block begins as "pass it on"
        and the gradient reaches all of them; the head starts at zero, so the first loss is exactly
        ln(vocabulary).
        """
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.qkv.weight, std=self.config.width**-0.5)
                if self.config.qkv_bias:
                    nn.init.zeros_(module.qkv.bias)
                _zero(module.proj)
            elif isinstance(module, FeedForward):
                nn.init.normal_(module.up.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.up.bias)
                _zero(module.down)
        if self.lm_head is not None:
            _zero(self.lm_head)
        return self


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
