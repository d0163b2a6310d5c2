"""The losses of both splits, measured on samples so small that they cost a fraction of training.

nanoGPT draws random windows for this. Here the windows of a sample are always the same ones, spread
evenly, so that two losses of a run differ by what was learnt and not by what was drawn.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm_repl.model.build import LanguageModel
from minillm_repl.training import Cancelled, never_interrupted
from minillm_repl.training.machine import Distributed
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.tokens import Split

_EVAL_BATCH_TOKENS = 16_384  # tokens of one forward pass
# Multiplications of one forward pass, of which a large model reads fewer tokens: a fraction of a
# second, because Ctrl-C is looked for between two passes.
_EVAL_MULTIPLICATIONS = 20_000_000_000
_QUICK_WORK = 2_000_000_000  # multiplications of the sample after Ctrl-C, which is soon read
_MAX_EVAL_SHARE = 1 / 8  # of the work of training: what all evaluations of a run cost together
_FINAL_SHARE = 2 / 3  # of that, for the weights that are kept; the rest is for those on the way
_TRAIN_SHARE = 1 / 3  # of an evaluation, for the training split beside a validation split
# Multiplications that are free: an evaluation of so little work takes some milliseconds.
_FREE_WORK, _FREE_FINAL_WORK = 500_000_000, 5_000_000_000
# A step costs as much as a forward pass over this many times its tokens (measured: 3.7, LoRA 3.0).
# Forward is one, backward two, of frozen weights one; the optimiser and small batches add a fifth.
_OPTIMISER_FACTOR = 1.2
_STEP_COST, _LORA_STEP_COST = 3, 2

Starts = NDArray[np.int64]  # (b,) places where windows begin
Losses = tuple[float, float | None]  # of the training and the validation split, nats per token


class Evaluator:
    """Measures a model that is trained, on its training split and, if there is one, its validation
    split.

    `loss` returns the sum of the losses over a split's windows, in nats, and how many count.
    """

    def __init__(
        self,
        model: LanguageModel,
        train: Split,
        val: Split | None,
        plan: TrainPlan,
        distributed: Distributed,
        loss: Callable[[Split, Starts], tuple[Tensor, int]],
    ) -> None:
        self._model, self._train, self._val = model, train, val
        self._plan, self._distributed, self._loss = plan, distributed, loss

    def token_counts(self) -> tuple[int, int]:
        """Return the tokens that an evaluation on the way reads, and the last one of the plan."""
        return self._count(self._starts_on_the_way()), self._count(self._final_starts())

    def losses(self, interrupted: Callable[[], bool]) -> Losses:
        """Return the losses on the way. Raises Cancelled."""
        return self._losses(self._starts_on_the_way(), interrupted)

    def final_losses(self, interrupted: Callable[[], bool], *, is_quick: bool) -> Losses:
        """Return the losses of the weights that are kept, over the whole of a text or a large
        sample; over a small one if `is_quick`, or as soon as `interrupted`.
        """
        if not is_quick:
            try:
                return self._losses(self._final_starts(), interrupted)
            except Cancelled:
                pass  # The user waits: a smaller sample will do.
        small = self._quick_tokens()
        return self._losses(self._starts(small, small), never_interrupted)

    def quick_loss(self) -> float:
        """Return the loss of the weights as they are now, on the sample of one forward pass of
        the validation split, or of the training split where there is no other.
        """
        train, val = self._starts(self._quick_tokens(), self._quick_tokens())
        return self.mean_loss(self._val, val) if self._val else self.mean_loss(self._train, train)

    @torch.no_grad()
    def mean_loss(
        self, split: Split, starts: Starts, interrupted: Callable[[], bool] = never_interrupted
    ) -> float:
        """Return the mean loss over the windows at `starts`, in nats per token that counts.

        Raises Cancelled between two forward passes, where one process makes them all.
        """
        self._model.eval()  # no dropout
        world_size = self._distributed.world_size
        mine = starts[self._distributed.rank :: world_size]  # each process reads its share
        totals = torch.zeros(2, dtype=torch.float64)  # sum of the losses, and tokens that count
        # Windows are put together until a pass is large enough to be fast.
        tokens = min(_EVAL_BATCH_TOKENS, _EVAL_MULTIPLICATIONS // self._model.config.n_params)
        batch_size = max(1, tokens // split.context_length)
        for first in range(0, len(mine), batch_size):
            if first and world_size == 1 and interrupted():
                raise Cancelled
            summed, count = self._loss(split, mine[first : first + batch_size])
            totals += torch.tensor([summed.item(), count], dtype=torch.float64)
        if world_size > 1:
            device = next(self._model.parameters()).device
            totals = self._distributed.all_reduce(totals.to(device))
        total, n_targets = totals.tolist()
        return float(total / max(1.0, n_targets))  # a mean over tokens, not over windows

    def _losses(self, starts: tuple[Starts, Starts], interrupted: Callable[[], bool]) -> Losses:
        train_starts, val_starts = starts
        train = self.mean_loss(self._train, train_starts, interrupted)
        if self._val is None:
            return train, None
        return train, self.mean_loss(self._val, val_starts, interrupted)

    def _starts_on_the_way(self) -> tuple[Starts, Starts]:
        budget = (1 - _FINAL_SHARE) * eval_budget(self._plan) / n_evals(self._plan)
        return self._sample(max(budget, _FREE_WORK / self._model.config.n_params))

    def _final_starts(self) -> tuple[Starts, Starts]:
        budget = _FINAL_SHARE * eval_budget(self._plan)
        return self._sample(max(budget, _FREE_FINAL_WORK / self._model.config.n_params))

    def _sample(self, tokens: float) -> tuple[Starts, Starts]:
        """Return where the windows of a sample of `tokens` begin, at least one in each split."""
        share = _TRAIN_SHARE if self._val else 1.0
        return self._starts(max(1, int(share * tokens)), max(1, int((1 - share) * tokens)))

    def _starts(self, train_tokens: int, val_tokens: int) -> tuple[Starts, Starts]:
        """Return where the windows of a sample begin, in both splits."""
        train = self._train.evenly_spaced_starts(train_tokens)
        if self._val is None:
            return train, np.empty(0, np.int64)
        return train, self._val.disjoint_starts(val_tokens)

    def _count(self, starts: tuple[Starts, Starts]) -> int:
        return sum(map(len, starts)) * self._plan.context_length

    def _quick_tokens(self) -> int:
        """Return the tokens of the sample after Ctrl-C, no less than a window."""
        return max(self._plan.context_length, _QUICK_WORK // self._model.config.n_params)


def n_evals(plan: TrainPlan) -> int:
    """Return how often a run measures on its way: before the first step, then at each interval,
    and after the last step.
    """
    return plan.steps // plan.eval_interval + 1 + (plan.steps % plan.eval_interval > 0)


def eval_budget(plan: TrainPlan) -> float:
    """Return how many tokens all evaluations of a run may read."""
    cost = (_LORA_STEP_COST if plan.lora_rank else _STEP_COST) * _OPTIMISER_FACTOR
    return _MAX_EVAL_SHARE * cost * plan.steps * plan.batch_size * plan.context_length


def estimate_seconds(
    plan: TrainPlan, seconds: float, eval_tokens: int, final_eval_tokens: int
) -> float:
    """Return the seconds of a whole run, with its evaluations of `eval_tokens` each.

    `seconds` is the time of the forward and backward pass of one step.
    """
    evaluated_tokens = n_evals(plan) * eval_tokens + final_eval_tokens
    cost = _LORA_STEP_COST if plan.lora_rank else _STEP_COST
    return seconds * (
        plan.steps * _OPTIMISER_FACTOR
        + evaluated_tokens / (plan.batch_size * plan.context_length) / cost
    )
