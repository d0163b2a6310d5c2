"""The study note's MiniLLM, top to bottom: embeddings, blocks of attention and feed-forward, an output head.

Shapes at the ends of lines use b = batch, t = time (positions), w = width, h = head, d = head_size, v = vocabulary.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm_repl.model.cache import KVCache
from minillm_repl.model.config import GPTConfig
from minillm_repl.model.taps import Tap, untapped


class Attention(nn.Module):
    """Every position asks (query), every earlier one answers (key) and hands over what it knows (value)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, cache: KVCache | None, tap: Tap) -> Tensor:
        """Mix information between positions: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}.attention."
        heads = self.qkv(x).unflatten(-1, (3, self.config.heads, self.config.head_size))  # (b, t, 3, h, d)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        q, k, v = tap(name + "q", q), tap(name + "k", k), tap(name + "v", v)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (b, h, past + t, d)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=_causal_mask(q, k), is_causal=q.shape == k.shape)
        z = tap(name + "z", z.transpose(1, 2))  # (b, t, h, d)
        return tap(name + "out", self.proj(z.flatten(2)))


def _causal_mask(q: Tensor, k: Tensor) -> Tensor | None:
    """Return which of the keys each query may see, where `is_causal` alone would not say it: after a cached past."""
    new, seen = q.shape[-2], k.shape[-2]
    if new in (1, seen):  # one query sees all; without a past is_causal says it
        return None
    return torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)


class FeedForward(nn.Module):
    """Each position thinks by itself: four times wider, GELU, and back."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Map each position on its own: (b, t, w) -> (b, t, w)."""
        hidden = tap(f"blocks.{self.layer}.ff.hidden", F.gelu(self.up(x)))  # (b, t, 4w)
        return tap(f"blocks.{self.layer}.ff.out", self.down(hidden))


class Block(nn.Module):
    """One storey: attention, then feed-forward, each reading a normalised copy and adding to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.ln1 = nn.LayerNorm(config.width)
        self.attention = Attention(config, layer)
        self.ln2 = nn.LayerNorm(config.width)
        self.ff = FeedForward(config, layer)

    def forward(self, x: Tensor, cache: KVCache | None, tap: Tap) -> Tensor:
        """Add what this block finds to the residual stream: (b, t, w) -> (b, t, w)."""
        x = tap(f"blocks.{self.layer}.residual.mid", x + self.attention(self.ln1(x), cache, tap))
        return tap(f"blocks.{self.layer}.residual", x + self.ff(self.ln2(x), tap))


class GPT(nn.Module):
    """Token ids in, for every position the logits of the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.lm_head = nn.Linear(config.width, config.vocab)

    def forward(self, ids: Tensor, cache: KVCache | None = None, tap: Tap = untapped, *, last: bool = False) -> Tensor:
        """Return logits (b, t, v) for token ids (b, t); with `last`, for the last position only (b, 1, v).

        With a cache, `ids` follow the tokens already in it, and join them; positions + cache must fit the context.
        """
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        x = tap("embedding", self.token_embedding(ids) + self.position_embedding(positions))  # (b, t, w)
        for block in self.blocks:
            x = block(x, cache, tap)
        if cache is not None:
            cache.length += ids.shape[1]
        if last:
            x = x[:, -1:]
        return self.lm_head(tap("final", self.ln_f(x)))  # type: ignore[no-any-return]

    @torch.no_grad()
    def initialise(self) -> "GPT":
        """Set fresh weights from torch's global random state, and return the model.

        Whatever adds to the residual stream starts at zero, so every block begins as "pass it on" and the gradient
        reaches all of them; the head starts at zero, so the first loss is exactly ln(vocabulary).
        """
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.qkv.weight, std=self.config.width**-0.5)
                _zero(module.proj)
            elif isinstance(module, FeedForward):
                nn.init.normal_(module.up.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.up.bias)
                _zero(module.down)
        _zero(self.lm_head)
        return self

    @classmethod
    def from_tensors(cls, config: GPTConfig, tensors: Mapping[str, NDArray[np.float32]]) -> "GPT":
        """Build the model around a copy of the named arrays; names and shapes are those of `config.shapes()`."""
        with torch.device("meta"):  # no time spent on weights that are replaced at once
            model = cls(config)
        weights = {name: torch.tensor(array) for name, array in tensors.items()}
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_()

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of the weights as float32 arrays, by name."""
        return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in self.state_dict().items()}


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
