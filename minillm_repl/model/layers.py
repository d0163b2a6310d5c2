"""The layers that hold a matrix, and low-rank adapters beside them. Arithmetic is in float32.

A matrix in fewer than 32 bits is widened one block of rows at a time, where it is used: a block
stays in a near cache, and no second copy of the weights is made.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Union

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor, nn

from minillm_repl.model.panels import PANEL_ROWS
from minillm_repl.model.quantised import BlockMatrix, QuantisedMatrix

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel

_BLOCK_ELEMENTS = 2**18  # numbers that are widened at once: 1 MiB of float32, in a near cache
# 256 MiB: on a GPU, launching many small operations takes longer than the operations themselves.
_GPU_BLOCK_ELEMENTS = 2**26

Weight = Union[Tensor, "QuantisedWeight"]
"""What a layer may have as its weight: both hand out rows, and both know their shape."""


class Linear(nn.Linear):
    """A linear layer, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return linear_float32(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table with a vector for each id, which it hands out in float32."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to vectors (..., width)."""
        vectors = super().forward(ids) if isinstance(self.weight, Tensor) else self.weight[ids]
        return vectors if vectors.itemsize >= 4 else vectors.float()


class QuantisedWeight:
    """A matrix in 8 bits or fewer as a layer's weight: indexing returns rows in float32."""

    itemsize = 1  # byte, or less: `linear_float32` widens it block by block

    def __init__(self, matrix: QuantisedMatrix | BlockMatrix) -> None:
        self.shape, self._matrix = matrix.shape, matrix

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        return torch.from_numpy(self._matrix[rows])


def linear_float32(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return x · weightᵀ + bias: (..., inputs) to (..., outputs)."""
    if isinstance(weight, Tensor) and weight.itemsize >= 4:
        return F.linear(x, weight, bias)
    y: Tensor = _BlockwiseLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


class _BlockwiseLinear(torch.autograd.Function):
    """The product with a matrix that is widened block by block, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight) -> Tensor:
        """Return x · weightᵀ: (..., inputs) to (..., outputs)."""
        ctx.weight = weight
        y = x.new_empty(*x.shape[:-1], len(weight))
        for first, block in _float32_blocks(weight):
            y[..., first : first + len(block)] = F.linear(x, block)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x: (..., inputs). A weight of 16 bits or less gets none."""
        (grad_output,) = grad_outputs
        grad_input = grad_output.new_zeros(*grad_output.shape[:-1], ctx.weight.shape[1])
        for first, block in _float32_blocks(ctx.weight):
            grad_input += grad_output[..., first : first + len(block)] @ block
        return grad_input, None


def add_causal_conv(recent: Tensor, weight: Tensor) -> Tensor:
    """Return x + conv(x): (b, t, w), for x and the n − 1 tokens before it, `recent` (b, n-1+t, w).

    `weight` is (n, w). y[t] = x[t] + Σ weight[i] · recent[t + i]; the last i is the token itself.
    """
    y: Tensor = _AddCausalConv.apply(recent, weight)  # type: ignore[no-untyped-call]
    return y


class _AddCausalConv(torch.autograd.Function):
    """The sum above, in place: a third of the time that torch's own grouped convolution takes."""

    @staticmethod
    def forward(ctx: Any, recent: Tensor, weight: Tensor) -> Tensor:
        """Return x + conv(x): (b, t, w)."""
        ctx.save_for_backward(recent, weight)
        last = len(weight) - 1
        y = torch.addcmul(recent[:, last:], recent[:, last:], weight[last])  # (b, t, w)
        for i in range(last):
            y.addcmul_(recent[:, i : i + y.shape[1]], weight[i])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both."""
        (grad,) = grad_outputs  # (b, t, w)
        recent, weight = ctx.saved_tensors
        grad_recent, grad_weight = torch.zeros_like(recent), torch.empty_like(weight)
        grad_recent[:, len(weight) - 1 :] = grad  # of x itself
        for i in range(len(weight)):
            window = slice(i, i + grad.shape[1])
            grad_recent[:, window].addcmul_(grad, weight[i])
            grad_weight[i] = (grad * recent[:, window]).sum((0, 1))
        return grad_recent, grad_weight


def _float32_blocks(weight: Weight) -> Iterator[tuple[int, Tensor]]:
    """Yield a matrix's rows as float32, some at a time, each with the number of its first row."""
    max_elements = (
        _GPU_BLOCK_ELEMENTS if isinstance(weight, Tensor) and weight.is_cuda else _BLOCK_ELEMENTS
    )
    rows = max(PANEL_ROWS, max_elements // weight.shape[1] // PANEL_ROWS * PANEL_ROWS)
    for first in range(0, len(weight), rows):
        yield first, weight[first : first + rows].float()


def add_dropout(model: nn.Module, p: float) -> None:
    """Drop a share of the embedding, and of what attention and MLP add to the residual stream."""

    def drop(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, p, module.training)

    # What writes to the residual stream, as in GPT-2.
    ends = ("token_embedding", "attention.proj", ".down")
    for name, module in model.named_modules():
        if name.endswith(ends):
            module.register_forward_hook(drop)


def recompute_activations(model: "LanguageModel") -> None:
    """Let each block keep only its input for the backward pass, and compute the rest again there:
    a third more work, for a fraction of the memory. The numbers are the same.
    """
    from torch.utils.checkpoint import checkpoint

    def recomputing(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Any, **options: Any) -> Tensor:
            if not torch.is_grad_enabled():
                return forward(*inputs, **options)
            output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, **options)
            return output

        return run

    for block in model.blocks:
        block.forward = recomputing(block.forward)


# -- low-rank adaptation (Hu et al. 2021): a matrix stays; two thin ones learn the difference


class LoRALinear(nn.Module):
    """A frozen linear layer plus `up` · `down`: (outputs, rank) · (rank, inputs), at first zero."""

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
        # Only `up` is zero: were both zero, neither would get a gradient.
        nn.init.normal_(self.down, std=base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        result: Tensor = self.base(x) + F.linear(F.linear(x, self.down), self.up)
        return result


def add_adapters(model: "LanguageModel", rank: int) -> "LanguageModel":
    """Put an adapter of this rank beside every matrix in the blocks; only these are trained now.

    Routers and experts have none: other programs keep the experts of a layer in one tensor, which
    an adapter of theirs cannot name.
    """
    model.requires_grad_(False)
    routed = {
        part for mlp in model.blocks.modules() if hasattr(mlp, "router") for part in mlp.modules()
    }
    # Lists: the loop replaces the modules that it visits.
    for module in list(model.blocks.modules()):
        if not isinstance(module, LoRALinear) and module not in routed:
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
