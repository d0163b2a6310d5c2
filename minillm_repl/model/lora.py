"""Low-rank adaptation (Hu et al.

2021): a matrix stays as it is, and two thin ones beside it learn the difference.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor, nn

from minillm_repl.model.build import LanguageModel


class LoRALinear(nn.Module):
    """A linear layer that is kept, plus `up` · `down`: (outputs, rank) · (rank, inputs), which
    is zero at first.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = base.weight
        self.down = nn.Parameter(
            torch.empty(rank, base.in_features, dtype=like.dtype, device=like.device)
        )
        self.up = nn.Parameter(
            torch.zeros(base.out_features, rank, dtype=like.dtype, device=like.device)
        )
        nn.init.normal_(self.down, std=base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        result: Tensor = self.base(x) + F.linear(F.linear(x, self.down), self.up)
        return result


def add_adapters(model: LanguageModel, rank: int) -> LanguageModel:
    """Put an adapter of this rank beside every matrix in the blocks; only these are trained now."""
    model.requires_grad_(False)
    for module in list(model.blocks.modules()):
        if not isinstance(module, LoRALinear):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(module, name, LoRALinear(layer, rank))
    return model


def merge_adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model (its state by name) with its adapters, if it has any, added
    to their matrices.
    """
    weights = {}
    for name, tensor in state.items():
        layer, _dot, parameter = name.rpartition(".")
        if parameter in ("up", "down") and f"{layer}.base.weight" in state:
            continue
        if layer.endswith(".base") and parameter == "weight":
            adapted_layer = layer.removesuffix(".base")
            up, down = state[f"{adapted_layer}.up"], state[f"{adapted_layer}.down"]
            tensor = tensor + up @ down  # noqa: PLW2901
        weights[name.replace(".base.", ".")] = tensor
    return weights


def adapter_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters' own tensors of a model's state."""
    return {
        name: tensor
        for name, tensor in state.items()
        if f"{name.rpartition('.')[0]}.base.weight" in state
    }
