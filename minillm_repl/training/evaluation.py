"""The losses of both splits, and the weights that are kept because of them.

They are measured on samples so small that this costs a fraction of training.

nanoGPT draws random windows for this. Here the windows of a sample are always the same ones, spread
evenly, so that two losses of a run differ by what was learnt and not by what was drawn.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm_repl.model.build import LanguageModel
from minillm_repl.training import Cancelled, Reason, TrainingFinished, never_interrupted
from minillm_repl.training.defaults import eval_budget
from minillm_repl.training.machine import Distributed
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.splits import Split

if TYPE_CHECKING:
    from minillm_repl.training.trainer import Trainer

_EVAL_BATCH_TOKENS = 16_384  # tokens of one forward pass
# Multiplications of one forward pass, of which a large model reads fewer tokens: a fraction of a
# second, because Ctrl-C is looked for between two passes.
_EVAL_MULTIPLICATIONS = 20_000_000_000
_QUICK_WORK = 2_000_000_000  # multiplications of the sample after Ctrl-C, which is soon read
_FINAL_SHARE = 2 / 3  # of all evaluations of a run, for the weights that are kept at its end
_TRAIN_SHARE = 1 / 3  # of an evaluation, for the training split beside a validation split
# Multiplications that are free: an evaluation of so little work takes some milliseconds.
_FREE_WORK, _FREE_FINAL_WORK = 500_000_000, 5_000_000_000

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
        self._distributed, self._loss = distributed, loss
        # Tokens of the sample after Ctrl-C, no less than a window.
        self._quick_tokens = max(plan.context_length, _QUICK_WORK // model.config.n_params)
        budget, n_params = eval_budget(plan), model.config.n_params
        # Each sample: where its windows begin, in both splits.
        on_the_way = (1 - _FINAL_SHARE) * budget / n_evals(plan)
        self._starts_on_the_way = self._sample(max(on_the_way, _FREE_WORK / n_params))
        final = max(_FINAL_SHARE * budget, _FREE_FINAL_WORK / n_params)
        self._final_starts = self._sample(final)
        # The tokens that an evaluation on the way reads, and the last one of the plan.
        self.token_counts = (
            sum(map(len, self._starts_on_the_way)) * plan.context_length,
            sum(map(len, self._final_starts)) * plan.context_length,
        )

    def losses(self, interrupted: Callable[[], bool]) -> Losses:
        """Return the losses on the way. Raises Cancelled."""
        return self._losses(self._starts_on_the_way, interrupted)

    def final_losses(self, interrupted: Callable[[], bool], *, is_quick: bool) -> Losses:
        """Return the losses of the weights that are kept, over the whole of a text or a large
        sample; over a small one if `is_quick`, or as soon as `interrupted`.
        """
        if not is_quick:
            try:
                return self._losses(self._final_starts, interrupted)
            except Cancelled:
                pass  # The user waits: a smaller sample will do.
        small = self._quick_tokens
        return self._losses(self._starts(small, small), never_interrupted)

    def quick_loss(self) -> float:
        """Return the loss of the weights as they are now, on the sample of one forward pass of
        the validation split, or of the training split where there is no other.
        """
        train, val = self._starts(self._quick_tokens, self._quick_tokens)
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

    def _sample(self, tokens: float) -> tuple[Starts, Starts]:
        """Return where the windows of a sample of `tokens` begin, at least one in each split."""
        share = _TRAIN_SHARE if self._val else 1.0  # The validation loss decides: it gets more.
        return self._starts(max(1, int(share * tokens)), max(1, int((1 - share) * tokens)))

    def _starts(self, train_tokens: int, val_tokens: int) -> tuple[Starts, Starts]:
        """Return where the windows of a sample begin, in both splits."""
        train = evenly_spaced_starts(self._train, train_tokens)
        if self._val is None:
            return train, np.empty(0, np.int64)
        return train, disjoint_starts(self._val, val_tokens)


def finish(trainer: "Trainer", reason: Reason, interrupted: Callable[[], bool]) -> TrainingFinished:
    """Leave the model with the weights to keep, and measure these."""
    state, is_quick = trainer.state, reason == "interrupt"
    kept, first_and_last = state.best_step, (state.first_loss, state.best_loss)
    if is_quick and state.last_eval_step != state.step:
        # The latest weights were not measured: they are compared on a sample of their own.
        latest_loss, latest = trainer.evaluator.quick_loss(), trainer.copy_weights()
        trainer.load_weights(trainer.best_weights)
        best_loss = trainer.evaluator.quick_loss()
        if trainer.val is None or latest_loss < best_loss:
            trainer.load_weights(latest)
            kept, best_loss = state.step, latest_loss
        first_and_last = state.first_quick_loss, best_loss
    else:
        trainer.load_weights(trainer.best_weights)
    trainer.round_weights()
    train, val = trainer.evaluator.final_losses(interrupted, is_quick=is_quick)
    return state.finished(
        reason,
        kept=kept,
        first_and_last=first_and_last,
        train_loss=train,
        val_loss=val,
        scale=trainer.bits_per_character_scale,
    )


def evenly_spaced_starts(split: Split, max_tokens: int) -> Starts:
    """Return where windows begin that lie evenly over the whole row and have about
    `max_tokens` tokens, or are all.
    """
    stride = -(-split.n_windows * split.context_length // max_tokens)
    return np.arange(0, split.n_windows, max(1, min(stride, split.n_windows)))


def disjoint_starts(split: Split, max_tokens: int = 0) -> Starts:
    """Return where windows begin that lie side by side: every token is a target once;
    thinned to `max_tokens` tokens.
    """
    starts = np.arange(0, split.n_windows, split.context_length)
    count = max(1, max_tokens // split.context_length) if max_tokens else len(starts)
    if count >= len(starts):
        return starts
    return starts[np.arange(count) * len(starts) // count]


def n_evals(plan: TrainPlan) -> int:
    """Return how often a run measures on its way: before the first step, then at each interval,
    and after the last step.
    """
    return plan.steps // plan.eval_interval + 1 + (plan.steps % plan.eval_interval > 0)
