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
_MIN_EVAL_TOKENS = 8_192  # tokens of an evaluation on the way, where there are that many
_MIN_FINAL_EVAL_TOKENS = 1 << 17  # tokens of the evaluation of the weights that are kept
_MAX_EVAL_SHARE = 0.15  # of the work of training, for a larger sample than these
_TRAINING_COST = 3  # times the cost of a forward pass: the backward pass is two of them
_OPTIMISER_FACTOR = 1.2  # a whole step takes this times the time of its forward and backward pass

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
        plan = self._plan
        trained_tokens = plan.steps * plan.batch_size * plan.context_length
        on_the_way, last = self._starts_on_the_way(), self._final_starts(trained_tokens)
        return self._count(on_the_way), self._count(last)

    def losses(self, interrupted: Callable[[], bool]) -> Losses:
        """Return the losses on the way. Raises Cancelled."""
        return self._losses(self._starts_on_the_way(), interrupted)

    def final_losses(
        self, trained_tokens: int, interrupted: Callable[[], bool], *, is_quick: bool
    ) -> Losses:
        """Return the losses of the weights that are kept, over the whole of a text or a large
        sample; over a small one if `is_quick`, or as soon as `interrupted`.
        """
        if not is_quick:
            try:
                return self._losses(self._final_starts(trained_tokens), interrupted)
            except Cancelled:
                pass  # The user waits: a smaller sample will do.
        small = self._quick_tokens()
        return self._losses(self._starts(small, small), never_interrupted)

    def latest_val_loss(self, *, is_quick: bool) -> float:
        """Return the loss of the weights as they are now, on a sample of the validation split."""
        assert self._val is not None
        tokens = self._quick_tokens() if is_quick else _MIN_EVAL_TOKENS
        return self.mean_loss(self._val, self._val.disjoint_starts(tokens))

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
        plan = self._plan
        trained = plan.eval_interval * plan.batch_size * plan.context_length  # since the last one
        tokens = max(_MIN_EVAL_TOKENS, int(trained * _TRAINING_COST * _MAX_EVAL_SHARE))
        return self._starts(tokens // 2, tokens) if self._val else self._starts(tokens, tokens)

    def _final_starts(self, trained_tokens: int) -> tuple[Starts, Starts]:
        share = int(trained_tokens * _TRAINING_COST * _MAX_EVAL_SHARE)
        tokens = max(_MIN_FINAL_EVAL_TOKENS, share)
        return self._starts(_MIN_EVAL_TOKENS if self._val else tokens, tokens)

    def _starts(self, train_tokens: int, val_tokens: int) -> tuple[Starts, Starts]:
        """Return where the windows of a sample begin, in both splits."""
        train = self._train.evenly_spaced_starts(train_tokens)
        if self._val is None:
            return train, np.empty(0, np.int64)
        return train, self._val.disjoint_starts(val_tokens)

    def _count(self, starts: tuple[Starts, Starts]) -> int:
        return sum(map(len, starts)) * self._plan.context_length

    def _quick_tokens(self) -> int:
        """Return the tokens of one forward pass, about, and no less than a window."""
        tokens = _EVAL_MULTIPLICATIONS // self._model.config.n_params
        return min(_MIN_EVAL_TOKENS, max(self._plan.context_length, tokens))


def estimate_seconds(
    plan: TrainPlan, seconds: float, eval_tokens: int, final_eval_tokens: int
) -> float:
    """Return the seconds of a whole run, with its evaluations of `eval_tokens` each.

    `seconds` is the time of the forward and backward pass of one step.
    """
    n_evals = plan.steps // plan.eval_interval + 1 + (plan.steps % plan.eval_interval > 0)
    evaluated_tokens = n_evals * eval_tokens + final_eval_tokens
    return seconds * (
        plan.steps * _OPTIMISER_FACTOR
        + evaluated_tokens / (plan.batch_size * plan.context_length) / _TRAINING_COST
    )
