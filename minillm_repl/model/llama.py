"""Llama, top to bottom: embedding, blocks of attention and gated MLP, an output head.

Llama and its relatives, from Mistral to Gemma, are all of this family, and so are new models here,
which have Canon layers as well; the config has the differences.

Shapes at the ends of lines use b = batch, t = time (positions), w = d_model, h = heads, g = KV
heads, d = head_dim, v = vocabulary.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor, nn

from minillm_repl.model.attention import KVCache, attend_hooked, softcap
from minillm_repl.model.config import CANON_TOKENS, LlamaConfig
from minillm_repl.model.hooks import Hook, no_hook
from minillm_repl.model.layers import Embedding, Linear, add_causal_conv, linear_float32
from minillm_repl.model.mlp import LlamaMLP, RoutedMLP
from minillm_repl.model.rope import CosSin, apply_rotary_emb, compute_cos_sin


class RMSNorm(nn.Module):
    """Divides by the root mean square, and scales; unlike LayerNorm it subtracts no mean.

    torch's own RMSNorm scales before it rounds to 16 bits. These models were trained with the
    rounding first, so the scale is a product of its own here.
    """

    def __init__(self, config: LlamaConfig, dim: int = 0) -> None:
        super().__init__()
        self.plus_one = config.norm_plus_one  # Gemma stores its scales less 1
        fill = torch.zeros if self.plus_one else torch.ones
        self.weight = nn.Parameter(fill(dim or config.d_model))
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, in float32 at least."""
        return self.scale() * F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def scale(self) -> Tensor:
        """Return what each number is multiplied by: (dim,)."""
        return self.weight + 1 if self.plus_one else self.weight


class CanonLayer(nn.Module):
    """Adds a mix of each token and the three before it, each dimension by itself.

    A causal depthwise convolution with a residual connection (Allen-Zhu 2025, "Canon layers").
    Attention and MLP then read a token together with its neighbours. It starts at zero: a new model
    begins as one without it.
    """

    def __init__(self, d_model: int, name: str) -> None:
        super().__init__()
        self.name = name  # of the part that reads its result
        # The last row is for the token itself, the first for the one three places before.
        self.weight = nn.Parameter(torch.zeros(CANON_TOKENS, d_model))

    def forward(self, x: Tensor, cache: KVCache | None, hook: Hook) -> Tensor:
        """Mix each token with those before it: (b, t, w) -> (b, t, w)."""
        x = hook(self.name + ".normed", x)
        if cache is None:
            recent = F.pad(x, (0, 0, CANON_TOKENS - 1, 0))  # (b, 3 + t, w): zeros before the text
        else:
            recent = cache.recent(self.name, x)  # (b, 3 + t, w)
        return hook(self.name + ".mixed", add_causal_conv(recent, self.weight))  # (b, t, w)


class LlamaAttention(nn.Module):
    """Self-attention: the query of each position attends to the keys up to that position.

    The result is the mean of their values, weighted by the attention.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.sliding_window = config.sliding_windows[layer] if config.sliding_windows else 0
        self.qkv = Linear(config.d_model, config.q_dim + 2 * config.kv_dim, bias=config.qkv_bias)
        q_size, k_size = config.qk_norm_dims
        self.q_norm = RMSNorm(config, q_size) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config, k_size) if config.qk_norm else nn.Identity()
        self.proj = Linear(config.q_dim, config.d_model, bias=config.out_bias)

    def forward(
        self, x: Tensor, cos_sin: CosSin | None, cache: KVCache | None, hook: Hook
    ) -> Tensor:
        """Mix information between positions: (b, t, w) -> (b, t, w)."""
        name, config = f"blocks.{self.layer}.attention.", self.config
        # One product makes the queries, then the keys, then the values.
        qkv = self.qkv(x)  # (b, t, (h+g+g)*d)
        if config.qk_norm and not config.qk_norm_per_head:  # over all heads of a token together
            q, k, v = qkv.split((config.q_dim, config.kv_dim, config.kv_dim), dim=-1)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), dim=-1)
        if config.qkv_clip:
            qkv = qkv.clamp(-config.qkv_clip, config.qkv_clip)  # (b, t, (h+g+g)*d)
        heads = qkv.unflatten(-1, (-1, config.head_dim)).transpose(1, 2)  # (b, h+g+g, t, d)
        qk, v = heads.tensor_split((config.n_heads + config.n_kv_heads,), dim=1)
        if config.qk_norm and config.qk_norm_per_head:
            q, k = qk.tensor_split((config.n_heads,), dim=1)  # (b, h, t, d) and (b, g, t, d)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)  # (b, h+g, t, d)
        if cos_sin is not None:
            qk = apply_rotary_emb(qk, cos_sin)  # (b, h+g, t, d)
        q, k = qk.tensor_split((config.n_heads,), dim=1)  # (b, h, t, d) and (b, g, t, d)
        q, k, v = hook(name + "q", q), hook(name + "k", k), hook(name + "v", v)
        mask = None
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (b, g, past + t, d)
            mask = cache.mask(self.sliding_window)
        window, pattern = self.sliding_window, name + "pattern"
        z = attend_hooked(q, k, v, config, window, mask, hook=hook, name=pattern)  # (b, h, t, d)
        z = z.transpose(1, 2)  # (b, t, h, d)
        z = hook(name + "z", z)  # (b, t, h, d)
        return self.proj(z.flatten(2))  # type: ignore[no-any-return]  # (b, t, h*d) -> (b, t, w)


class Taps(nn.Module):
    """The weights of a causal depthwise convolution: (conv_tokens, d_model), the last for the token
    itself.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.conv_tokens, config.d_model))


class ShortConv(nn.Module):
    """Mixes each token with the few before it, each dimension by itself, between two gates (LFM2).

    In the place of attention: it has no heads and no positions, and looks back two or three tokens.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.past = layer, config.conv_tokens - 1
        self.gates = Linear(config.d_model, 3 * config.d_model, bias=False)
        self.taps = Taps(config)
        self.proj = Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: Tensor, _cos_sin: CosSin | None, cache: KVCache | None, hook: Hook
    ) -> Tensor:
        """Mix information between near positions: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}.attention"
        before, after, value = self.gates(x).chunk(3, dim=-1)  # (b, t, w) each
        gated = hook(f"blocks.{self.layer}.conv.gated", before * value)
        if cache is None:
            recent = F.pad(gated, (0, 0, self.past, 0))  # (b, past + t, w): zeros before the text
        else:
            kept = cache.recent(name, gated)  # (b, 3 + t, w)
            recent = kept[:, CANON_TOKENS - 1 - self.past :]  # (b, past + t, w)
        windows = recent.unfold(1, self.past + 1, 1)  # (b, t, w, past + 1)
        mixed = (windows * self.taps.weight.T).sum(-1)  # (b, t, w)
        mixed = hook(f"blocks.{self.layer}.conv.mixed", mixed)
        return self.proj(after * mixed)  # type: ignore[no-any-return]  # (b, t, w)


class LlamaBlock(nn.Module):
    """Attention, or a short convolution, then the MLP: each reads the residual stream, and adds to
    it.

    What it reads is normalised, or what it adds, or both. A norm that a model lacks is an identity.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.residual_multiplier = layer, config.residual_multiplier
        pre, post = config.norm_placement != "post", config.norm_placement != "pre"
        self.norm1 = RMSNorm(config) if pre else nn.Identity()
        self.mixer = "conv" if config.is_conv(layer) else "attention"
        mixer = ShortConv(config, layer) if config.is_conv(layer) else LlamaAttention(config, layer)
        self.add_module(self.mixer, mixer)
        self.post_norm1 = RMSNorm(config) if post else nn.Identity()
        self.norm2 = RMSNorm(config) if pre else nn.Identity()
        is_routed = config.is_routed(layer)
        self.mlp = RoutedMLP(config, layer) if is_routed else LlamaMLP(config, layer)
        self.post_norm2 = RMSNorm(config) if post else nn.Identity()
        self.canon1 = self.canon2 = None
        if config.has_canon_layers:
            self.canon1 = CanonLayer(config.d_model, f"blocks.{layer}.attention")
            self.canon2 = CanonLayer(config.d_model, f"blocks.{layer}.mlp")

    def forward(
        self, x: Tensor, cos_sin: CosSin | None, cache: KVCache | None, hook: Hook
    ) -> Tensor:
        """Add what this block finds to the residual stream: (b, t, w) -> (b, t, w)."""
        name = f"blocks.{self.layer}."
        normed = self.norm1(x)  # (b, t, w)
        if self.canon1 is not None:
            normed = self.canon1(normed, cache, hook)  # (b, t, w)
        mix = self.get_submodule(self.mixer)
        attention_out = mix(normed, cos_sin, cache, hook)  # (b, t, w)
        attention_out = times(self.post_norm1(attention_out), self.residual_multiplier)
        x = x + hook(name + "attention.out", attention_out)  # (b, t, w)
        x = hook(name + "residual.mid", x)
        normed = self.norm2(x)  # (b, t, w)
        if self.canon2 is not None:
            normed = self.canon2(normed, cache, hook)  # (b, t, w)
        mlp_out = times(self.post_norm2(self.mlp(normed, hook)), self.residual_multiplier)
        return hook(name + "residual", x + hook(name + "mlp.out", mlp_out))  # (b, t, w)


class Llama(nn.Module):
    """Token ids in; out, for each position, the logits of the next token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(LlamaBlock(config, layer) for layer in range(config.n_layers))
        self.ropes = config.layer_ropes()
        self.norm_f = RMSNorm(config)
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
        hook("positions", positions)
        x = times(self.token_embedding(ids), self.config.embedding_multiplier)  # (b, t, w)
        x = hook("embedding", x)
        cos_sin = {  # most models have one RoPE for all layers
            rope: compute_cos_sin(rope, self.config.head_dim, positions, x.dtype)
            for rope in dict.fromkeys(self.ropes)
            if rope is not None
        }
        for block, rope in zip(self.blocks, self.ropes, strict=True):
            x = block(x, cos_sin[rope] if rope else None, cache, hook)  # (b, t, w)
        if cache is not None:
            cache.length += ids.shape[1]  # the layers have stored their keys and values
        if last_only:
            x = x[:, -1:]  # (b, 1, w)
        return self.unembed(x, hook)

    def unembed(self, residual: Tensor, hook: Hook = no_hook) -> Tensor:
        """Return the logits of a residual stream, the last norm included: (..., w) -> (..., v)."""
        x, config = hook("final", self.norm_f(residual)), self.config  # (..., w)
        if self.lm_head is None:
            logits = linear_float32(x, self.token_embedding.weight)  # (..., v)
        else:
            logits = self.lm_head(x)  # (..., v)
        if config.logits_scaling != 1:
            logits = logits / config.logits_scaling
        return softcap(logits, config.logit_softcap) if config.logit_softcap else logits

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
            elif isinstance(module, ShortConv):
                nn.init.normal_(module.gates.weight, std=self.config.d_model**-0.5)
                nn.init.ones_(module.taps.weight[-1])
                nn.init.zeros_(module.proj.weight)
            elif isinstance(module, RoutedMLP):
                nn.init.normal_(module.router.weight, std=self.config.d_model**-0.5)
            elif isinstance(module, LlamaMLP):
                nn.init.normal_(module.gate_up.weight, std=self.config.d_model**-0.5)
                nn.init.zeros_(module.down.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.lm_head is not None:
            nn.init.zeros_(self.lm_head.weight)
        return self


def times(x: Tensor, multiplier: float) -> Tensor:
    """Return x · multiplier; most models have a multiplier of 1, which costs nothing."""
    return x if multiplier == 1 else x * multiplier
