"""The MLP with a gate, and a mixture of such MLPs: a router chooses some for each token.

Shapes at the ends of lines use b = batch, t = time (positions), w = d_model, e = n_experts,
k = n_experts_per_tok.
"""

import torch
from torch import Tensor, nn

from minillm_repl.model.attention import ACTIVATION_FUNCTIONS
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.hooks import Hook, no_hook
from minillm_repl.model.layers import Linear


class LlamaMLP(nn.Module):
    """The MLP with a gate (SwiGLU): activation(gate) × up, then back to the width of the model."""

    def __init__(self, config: LlamaConfig, layer: int, d_hidden: int = 0) -> None:
        super().__init__()
        self.layer, d_hidden = layer, d_hidden or config.d_mlp
        self.gate_up = Linear(config.d_model, 2 * d_hidden, bias=config.mlp_bias)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.down = Linear(d_hidden, config.d_model, bias=config.mlp_bias)

    def forward(self, x: Tensor, hook: Hook) -> Tensor:
        """Map each position on its own: (b, t, w) -> (b, t, w)."""
        x = hook(f"blocks.{self.layer}.mlp.in", x)
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each (b, t, d_mlp)
        hidden = self.activation(gate) * up  # (b, t, d_mlp)
        hidden = hook(f"blocks.{self.layer}.mlp.hidden", hidden)
        return self.down(hidden)  # type: ignore[no-any-return]  # (b, t, w)


class RoutedMLP(nn.Module):
    """A mixture of experts (Shazeer et al. 2017): the router chooses k of e MLPs for each token.

    What it adds is the sum of their outputs, each times the weight that the router gives it.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.router = Linear(config.d_model, config.n_experts, bias=False)
        self.experts = nn.ModuleList(
            LlamaMLP(config, layer, config.d_expert) for _expert in range(config.n_experts)
        )

    def forward(self, x: Tensor, hook: Hook) -> Tensor:
        """Map each position by the experts that are chosen for it: (b, t, w) -> (b, t, w)."""
        x = hook(f"blocks.{self.layer}.mlp.in", x)
        logits = hook(f"blocks.{self.layer}.mlp.router", self.router(x))  # (b, t, e)
        weights, chosen = route(logits, self.config)  # each (b, t, k)
        y = torch.zeros_like(x)  # (b, t, w)
        used = set(chosen.flatten().tolist())
        for number, expert in enumerate(self.experts):
            # In training, all take part: then each has a gradient, which may be 0.
            if number in used or self.training:
                is_chosen = chosen == number  # (b, t, k)
                rows = is_chosen.any(-1)  # (b, t): the tokens that go to this expert, n of them
                weight = (weights * is_chosen).sum(-1)[rows]  # (n,)
                # No hook: an expert sees some tokens only, so its activations have other shapes.
                y[rows] += weight[:, None] * expert(x[rows], no_hook)  # (n, w)
        return y


def route(logits: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Return the weights and the numbers of the experts of each token: (..., e) -> two (..., k).

    The largest weight comes first. Where they are divided by their sum, they are the softmax over
    the chosen logits alone, as Granite writes it.
    """
    weights, chosen = logits.softmax(-1).topk(config.n_experts_per_tok, dim=-1)
    if config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen
