"""Llama, top to bottom: embedding, blocks of attention and gated feed-forward, an output head.

Llama 2 and 3, SmolLM 2, TinyLlama, Mistral, Qwen 2 and Qwen 3 are all of this family; the config
says in what they differ.

Shapes at the ends of lines use b = batch, t = time (positions), w = width, h = head, g = key and
value head, d = head_size, v = vocabulary.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor, nn

from minillm_repl.model.attention import ACTIVATION, attend
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.hooks import Tap, untapped
from minillm_repl.model.kv_cache import KVCache
from minillm_repl.model.layers import Embedding, Linear, multiply
from minillm_repl.model.rope import Rotation, rotate, rotation


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, and scales: no mean is taken away, and nothing is
    added.

    Where training computes in bfloat16, torch's own would scale before it rounds; models of this
    family were trained the other way round.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, in float32 at least."""
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=self.eps)


class Attention(nn.Module):
    """Every position asks (query), every earlier one answers (key) and hands over what it knows
    (value).
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.window = config.windows[layer] if config.windows else 0
        self.qkv = Linear(
            config.width, config.query_rows + 2 * config.key_rows, bias=config.qkv_bias
        )
        self.q_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        self.proj = Linear(config.query_rows, config.width, bias=config.out_bias)

    def forward(self, x: Tensor, turn: Rotation, cache: KVCache | None, tap: Tap) -> Tensor:
        """Mix information between positions: (b, t, w) -> (b, t, w)."""
        name, config = f"blocks.{self.layer}.attention.", self.config
        # (b, h + g + g, t, d)
        heads = self.qkv(x).unflatten(-1, (-1, config.head_size)).transpose(1, 2)
        qk, v = heads.tensor_split((config.heads + config.kv_heads,), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat(
                (self.q_norm(qk[:, : config.heads]), self.k_norm(qk[:, config.heads :])), dim=1
            )
        q, k = rotate(qk, turn).tensor_split((config.heads,), dim=1)  # (b, h, t, d), and g for h
        q, k, v = tap(name + "q", q), tap(name + "k", k), tap(name + "v", v)
        mask = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (b, g, past + t, d)
            mask = cache.mask(self.window)
        z = tap(name + "z", attend(q, k, v, self.window, mask).transpose(1, 2))  # (b, t, h, d)
        return tap(name + "out", self.proj(z.flatten(2)))


class FeedForward(nn.Module):
    """Each position thinks by itself: one half of the wide layer opens and closes the gates of
    the other (SwiGLU).
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate_up = Linear(config.width, 2 * config.hidden, bias=config.ff_bias)
        self.activation = ACTIVATION[config.activation]
        self.down = Linear(config.hidden, config.width, bias=config.ff_bias)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Map each position on its own: (b, t, w) -> (b, t, w)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each (b, t, hidden)
        hidden = tap(f"blocks.{self.layer}.ff.hidden", self.activation(gate) * up)
        return tap(f"blocks.{self.layer}.ff.out", self.down(hidden))


class Block(nn.Module):
    """One storey: attention, then feed-forward, each reading a normalised copy and adding to the
    residual stream.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm1 = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = RMSNorm(config.width, config.norm_eps)
        self.ff = FeedForward(config, layer)

    def forward(self, x: Tensor, turn: Rotation, cache: KVCache | None, tap: Tap) -> Tensor:
        """Add what this block finds to the residual stream: (b, t, w) -> (b, t, w)."""
        x = tap(
            f"blocks.{self.layer}.residual.mid", x + self.attention(self.norm1(x), turn, cache, tap)
        )
        return tap(f"blocks.{self.layer}.residual", x + self.ff(self.norm2(x), tap))


class Llama(nn.Module):
    """Token ids in, for every position the logits of the next token out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm_f = RMSNorm(config.width, config.norm_eps)
        self.lm_head = None if config.tied else Linear(config.width, config.vocab, bias=False)

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
        x = tap("embedding", self.token_embedding(ids))  # (b, t, w)
        turn = rotation(self.config.rope, self.config.head_size, positions, x.dtype)
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

    @torch.no_grad()
    def initialise(self) -> "Llama":
        """Set fresh weights from torch's global random state, and return the model.

        As in GPT, what adds to the residual stream starts at zero, and so does the head, so the
        first loss is exactly ln(vocabulary). A head that is the embedding cannot be zero; it starts
        small.
        """
        nn.init.normal_(self.token_embedding.weight, std=0.02 if self.lm_head is None else 0.5)
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.qkv.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.proj.weight)
            elif isinstance(module, FeedForward):
                nn.init.normal_(module.gate_up.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.down.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.lm_head is not None:
            nn.init.zeros_(self.lm_head.weight)
        return self
