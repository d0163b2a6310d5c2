"""The training loop: Muon for the matrices inside the blocks, AdamW for the rest; it yields, and prints nothing.

Muon (Jordan et al. 2024, torch's own) reaches the same loss as AdamW in a fraction of the steps at this size; with
`match_rms_adamw` (Moonshot AI 2025) both take the same learning rate. docs/decisions.md has the comparison.
"""

import math
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.model.build import LanguageModel
from minillm_repl.training.events import Evaluated, Finished, TrainStep
from minillm_repl.training.plan import TrainPlan

_WARM_UP = 20  # steps until the learning rate is whole: the first gradients are wild
_DECAY = 0.5  # the share of the steps, at the end, over which the learning rate falls to zero
_EVALUATED = 8192  # tokens: an even sample is enough to tell how it goes, and costs little
_POINTS = 200  # on the recorded loss curve


def train(
    model: LanguageModel, windows: Tensor, plan: TrainPlan, interrupted: Callable[[], bool] = lambda: False
) -> Iterator[TrainStep | Evaluated | Finished]:
    """Train `model` in place on `windows` (count, context + 1), on the device it is on.

    Yields an `Evaluated` before the first step, a `TrainStep` after each, an `Evaluated` ten times on the way and at
    the end, then `Finished`. `interrupted` is asked between two steps. The batches follow from `plan.seed` alone.

    Raises UserError when the loss is no longer a number.
    """
    device = next(model.parameters()).device
    optimizers = _optimizers(model, plan.lr)
    choose = torch.Generator().manual_seed(plan.seed)
    losses: list[float] = []
    tokens, started = 0, perf_counter()
    first_loss = evaluate(model, windows)
    yield Evaluated(0, first_loss)
    for step in range(1, plan.steps + 1):
        if interrupted():
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * schedule(step, plan.steps)
        batch = windows[torch.randint(len(windows), (plan.batch,), generator=choose)].to(device)
        losses.append(_step(model, optimizers, batch))
        tokens += plan.batch * (windows.shape[1] - 1)
        yield TrainStep(step, losses[-1], tokens, perf_counter() - started)
        if step % max(1, plan.steps // 10) == 0 and step < plan.steps:
            yield Evaluated(step, evaluate(model, windows))
    last_loss = _finite(evaluate(model, windows))
    yield Evaluated(len(losses), last_loss)
    reason: Literal["done", "interrupt"] = "done" if len(losses) == plan.steps else "interrupt"
    every = max(1, len(losses) // _POINTS)
    curve = tuple((step, round(loss, 4)) for step, loss in enumerate(losses, 1) if step % every == 0)
    yield Finished(reason, len(losses), tokens, perf_counter() - started, first_loss, last_loss, curve)


def schedule(step: int, steps: int) -> float:
    """Return the share of the learning rate at `step` (from 1): up over the first few, level, then down to zero."""
    warm = step / min(_WARM_UP, max(1, steps // 5))
    left = (steps - step + 1) / max(1, math.ceil(steps * _DECAY))
    return min(1.0, warm, left)


def _optimizers(model: LanguageModel, lr: float) -> list[torch.optim.Optimizer]:
    inside = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    known = set(map(id, inside))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        torch.optim.Muon(inside, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        # betas as in GPT-3; no weight decay: what is left here are embeddings, norms, biases and the head.
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def _step(model: LanguageModel, optimizers: list[torch.optim.Optimizer], batch: Tensor) -> float:
    """Take one step on a batch (b, context + 1) and return its loss, in nats per token."""
    loss = _loss(model, batch)
    _finite(loss.item())
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise UserError(f"the loss became {loss}: the learning rate is too high; try a smaller lr. Nothing was changed")
    return loss


def _loss(model: LanguageModel, batch: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(batch[:, :-1])  # (b, t, v)
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model: LanguageModel, windows: Tensor) -> float:
    """Return the mean loss over all windows, or an even sample of them, in nats per token."""
    device = next(model.parameters()).device
    context = windows.shape[1] - 1
    sample = windows[:: math.ceil(len(windows) / max(1, _EVALUATED // context))]
    total = 0.0
    for start in range(0, len(sample), 64):
        total += _loss(model, sample[start : start + 64].to(device), "sum").item()
    return total / (len(sample) * context)
