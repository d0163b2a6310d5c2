"""Muon, an optimiser for matrices: the gradient's momentum, all its directions equally long.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); the size of a step is that of Liu
et al. 2025 (https://arxiv.org/abs/2502.16982), with which AdamW's learning rates fit. torch's own
is the same, but always computes in bfloat16, which takes a processor without instructions for it
ten to twenty times as long as float32.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero, and near 1 after five times
_NS_STEPS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Moves matrices by orthogonalised momentum; `dtype` says at each step what to compute in."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        dtype: Callable[[], torch.dtype],
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                nesterov = matrix.grad.lerp(momentum, group["momentum"])  # Nesterov's
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                lr_scale = 0.2 * max(matrix.shape) ** 0.5
                matrix.add_(
                    orthogonalise(nesterov.to(self._dtype())), alpha=-group["lr"] * lr_scale
                )


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the matrix (rows, columns) with singular values near 1, by Newton and Schulz."""
    a, b, c = _NS_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_NS_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
