"""The optimisers and the learning rate: NorMuon for the matrices in the blocks, AdamW for the rest.

Muon reaches the same loss as AdamW in a fraction of the steps at this size (docs/decisions.md). It
steps along the gradient's momentum with all singular values made equal: Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/. Its step has the size that Liu et al. 2025
(https://arxiv.org/abs/2502.16982) give, so that AdamW's learning rates fit. torch's own Muon is the
same, but always computes in bfloat16, which takes a CPU without instructions for it ten to twenty
times as long as float32. NorMuon makes the rows of a step even as well: Li et al. 2025,
https://arxiv.org/abs/2510.05491.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minillm_repl.model.build import LanguageModel
from minillm_repl.model.config import is_convolution
from minillm_repl.training.machine import full_tensor, shard_like
from minillm_repl.training.plan import TrainPlan

# Newton and Schulz: p(s) = a s + b s³ + c s⁵ is applied to each singular value s, five times. These
# coefficients (Jordan et al.) are steepest at 0, so that small values grow fast; all end near 1.
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c
_NS_STEPS = 5
_EPS = 1e-7  # a gradient of zeros stays zeros
_ROW_DECAY = 0.95  # of each row's mean square, from step to step (Li et al.)
# Canon layers start at zero, and at AdamW's rate they are still small when a short run ends.
_CANON_LR_FACTOR = 3.0
_RMS_SCALE = 0.2  # the usual size of AdamW's steps, root mean square per weight (Liu et al.)


def lr_scale(step: int, plan: TrainPlan) -> float:
    """Return the factor of the peak learning rate at `step`, from 1: the warm-up, then the
    schedule of the plan.
    """
    warm = step / max(1, plan.warmup_steps)  # passes 1 when the warm-up ends
    remaining = (plan.steps - step + 1) / plan.steps  # from 1 to nearly 0; the last step counts too
    match plan.schedule:
        case "linear":  # constant over the first half, then straight down
            return min(1.0, warm, 2 * remaining)
        case "cosine":  # half a wave from 1 to 0 (Loshchilov and Hutter, 2017)
            return min(1.0, warm) * (1 + math.cos(math.pi * (1 - remaining))) / 2
    return min(1.0, warm)


def make_optimizers(
    model: LanguageModel,
    trainable_parameters: dict[str, nn.Parameter],
    plan: TrainPlan,
    dtype: Callable[[], torch.dtype],
) -> dict[str, torch.optim.Optimizer]:
    """Return NorMuon or Muon for the matrices in the blocks, AdamW for the rest; or AdamW alone.

    Their names are those in resume files. `dtype` returns what Muon computes in.
    """
    # Only matrices decay: the rest are embeddings, norms, biases and the head. The weights of a
    # Canon layer are a vector for each of four tokens, and no matrix.
    in_blocks = {name: each for name, each in model.blocks.named_parameters() if each.requires_grad}
    mixing = [each for name, each in in_blocks.items() if is_convolution(name)]
    matrices = [
        each for name, each in in_blocks.items() if each.ndim == 2 and not is_convolution(name)
    ]
    apart = set(map(id, [*matrices, *mixing]))
    groups: list[dict[str, Any]] = [
        {"params": [each for each in trainable_parameters.values() if id(each) not in apart]},
        {"params": mixing, "lr_factor": _CANON_LR_FACTOR},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if plan.optimizer == "adamw":
        groups.insert(0, {"params": matrices, "weight_decay": plan.weight_decay})
    else:
        optimizers[plan.optimizer] = Muon(
            matrices, plan.lr, plan.weight_decay, dtype, evens_rows=plan.optimizer == "normuon"
        )
    groups = [group for group in groups if group["params"]]
    if groups:
        # The betas are those of GPT-3.
        optimizers["adamw"] = torch.optim.AdamW(
            groups, lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
    return optimizers


class Muon(torch.optim.Optimizer):
    """Moves matrices by orthogonalised momentum; `dtype` says at each step what to compute in.

    With `evens_rows` it is NorMuon.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        dtype: Callable[[], torch.dtype],
        momentum: float = 0.95,
        *,
        evens_rows: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype, self._evens_rows = dtype, evens_rows

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
                # m ← 0.95 m + 0.05 g, then Nesterov's look ahead: 0.95 m + 0.05 g once more.
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                nesterov = matrix.grad.lerp(momentum, group["momentum"])  # (rows, columns)
                # Where processes hold a matrix in shares, each computes the whole step.
                update = orthogonalise(full_tensor(nesterov).to(self._dtype()))
                update = update.to(matrix.dtype)
                if self._evens_rows:
                    update = _even_rows(update, state, matrix)
                # Decay is apart from the gradient, as in AdamW.
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                # A matrix with singular values 1 has entries of root mean square 1 / √longer side.
                lr_scale = _RMS_SCALE * max(matrix.shape) ** 0.5
                matrix.add_(shard_like(update, matrix), alpha=-group["lr"] * lr_scale)


def _even_rows(update: Tensor, state: dict[str, Tensor], matrix: Tensor) -> Tensor:
    """Return an update (rows, columns) with rows of about the same length, its norm kept.

    Each row is divided by the root of its mean square over the steps so far, which `state` keeps,
    in shares if `matrix` is in shares.
    Without this, a few neurons take most of the steps.
    """
    squares = update.square().mean(1, keepdim=True)  # (rows, 1)
    if "row_squares" not in state:
        state["row_squares"] = shard_like(torch.zeros_like(squares), matrix)
    state["row_squares"].lerp_(shard_like(squares, matrix), 1 - _ROW_DECAY)
    mean_squares = full_tensor(state["row_squares"])  # (rows, 1)
    # A constant factor cancels out, so the mean needs no correction for its start at zero.
    even: Tensor = update / mean_squares.sqrt().clamp(min=_EPS)
    return even.mul_(update.norm() / even.norm().clamp(min=_EPS))


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the matrix (rows, columns) with singular values near 1, by Newton and Schulz."""
    a, b, c = _NS_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # (short, long): the smaller of the two products below
    x = x / x.norm().clamp(min=_EPS)  # then no singular value is above 1
    # All steps together are a polynomial of the products of x with itself, which is smaller than a
    # long x. In bfloat16 those products lose too much.
    is_long = x.itemsize >= 4 and x.shape[1] >= 2 * x.shape[0]
    gram, factor = x @ x.T, None  # (short, short)
    for step in range(_NS_STEPS):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # b g + c g²
        if not is_long:
            x = torch.addmm(x, polynomial, x, beta=a)  # a x + (b g + c g²) x
        else:
            polynomial.diagonal().add_(a)  # a + b g + c g²
            factor = polynomial if factor is None else polynomial @ factor
        if step < _NS_STEPS - 1:
            gram = x @ x.T if factor is None else polynomial @ gram @ polynomial
    x = x if factor is None else factor @ x
    return x.T if is_tall else x
