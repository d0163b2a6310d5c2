"""The training loop: Muon for the matrices in the blocks, AdamW for the rest; it prints nothing.

Muon reaches the same loss as AdamW in a fraction of the steps at this size. docs/decisions.md has
the comparison.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import LanguageModel
from minillm_repl.training.cancellation import STOPPED_EARLY, Cancelled, cancellable
from minillm_repl.training.distributed import Distributed, full_tensor
from minillm_repl.training.events import (
    Evaluated,
    Finished,
    NotSaved,
    Reason,
    Saved,
    TrainEvent,
    TrainStep,
)
from minillm_repl.training.muon import Muon
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.windows import IGNORE_INDEX, Split

_EVAL_BATCH_TOKENS = 16_384  # tokens of a measurement that are read together,
# and fewer of a large model: so many multiplications, a fraction of a second
_EVAL_MULTIPLICATIONS = 20_000_000_000
# multiplications a step, from which on each of its blocks asks whether to stop
_MIN_CANCELLABLE_WORK = 2_000_000_000
_MIN_EVAL_TOKENS = 8_192  # tokens: a measurement on the way shows no less, where there are so many
_MIN_FINAL_EVAL_TOKENS = 1 << 17  # tokens: of the weights that are kept
_MAX_EVAL_SHARE = 0.15  # of the work of training, at most, above that
_CURVE_POINTS = 200  # on a recorded loss curve
Starts = NDArray[np.int64]
_NO_STARTS: Starts = np.empty(0, np.int64)


@dataclass
class TrainerState:
    """Where a run is, as far as it is no tensor: what is in a resume file as JSON."""

    step: int = 0
    last_eval_step: int = -1  # the step after which the losses were last measured
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float = 0.0
    train_loss: float = 0.0  # when last measured
    # the lowest measured loss that counts, and the step it was measured after
    best_loss: float = sys.float_info.max
    best_step: int = 0
    evals_since_best: int = 0  # measurements since
    recent_losses: list[float] = field(
        default_factory=list
    )  # losses since the last point of the curve
    curve: list[tuple[int, float]] = field(default_factory=list)
    val_curve: list[tuple[int, float]] = field(default_factory=list)


class NonFiniteLoss(Exception):  # noqa: N818 - told in the Finished event
    """The loss or a gradient is no longer a finite number."""


class Trainer:
    """One run of a settled plan: a model, trained in place on the device it is on.

    `per_token` turns the mean loss into bits per character: it is tokens / characters / ln 2 of the
    measured text.
    """

    def __init__(
        self,
        model: LanguageModel,
        train: Split,
        val: Split | None,
        plan: TrainPlan,
        bits_per_character_scale: float = 1.0,
        distributed: Distributed | None = None,
    ) -> None:
        self.model, self.train, self.val, self.plan = model, train, val, plan
        self.distributed = distributed or Distributed()
        self.state = TrainerState()
        self.device = next(model.parameters()).device
        self._bits_per_character_scale = bits_per_character_scale
        if plan.dropout:
            _add_dropout(model, plan.dropout)
        if plan.shard:
            self.distributed.shard(model)
        compiled: nn.Module = torch.compile(model) if plan.compile else model  # type: ignore[assignment]
        self._forward = self.distributed.wrap(compiled, sharded=plan.shard)
        self.trainable_parameters = {
            name: each for name, each in model.named_parameters() if each.requires_grad
        }
        self.optimizers = _make_optimizers(
            model, self.trainable_parameters, plan, self._compute_dtype
        )
        self.best_weights = self._copy_weights()

    def _compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.plan.precision == "bfloat16" else torch.float32

    # -- the loop

    def events(
        self, interrupted: Callable[[], bool], save: Callable[[], str] | None = None
    ) -> Iterator[TrainEvent]:
        """Train until the plan's last step, and yield what happens.

        Both functions are asked between two steps: whether to stop, and to write the run to disk
        when the plan says so, which returns what kept it from that, if anything did: the run goes
        on. When the consumer is closed half-way, or anything fails, the run is written as it was
        after its last step. Raises UserError when stopped while the first measurement is made.
        """
        plan, state = self.plan, self.state
        self._started = perf_counter() - state.seconds
        self._save_due_step, self._save_due_time = state.step, perf_counter()
        self._last_saved_step, self._is_consistent = state.step, True
        reason: Reason = "done"
        try:
            while True:
                if state.last_eval_step != state.step and (
                    state.step % plan.eval_interval == 0 or state.step == plan.steps
                ):
                    yield self._evaluate(interrupted)
                    if plan.patience and state.evals_since_best >= plan.patience:
                        reason = "patience"
                        break
                if save and self._is_save_due():
                    error = self._try_save(save)
                    yield NotSaved(state.step, error) if error else Saved(state.step)
                if state.step == plan.steps:
                    break
                if self.distributed.any_rank(interrupted(), self.device):
                    raise Cancelled
                yield self.step(interrupted)
        except NonFiniteLoss:
            reason = "diverged"
        except Cancelled:  # nothing has been changed since the last step
            self._is_consistent = True
            if state.last_eval_step < 0:
                raise UserError(_(STOPPED_EARLY)) from None
            reason = "interrupt"
        except BaseException:
            self._save_on_exit(save)
            raise
        if reason == "interrupt" and state.step:
            self._save_on_exit(save)
        try:
            finished = self._finish(reason, interrupted)
        except BaseException:
            self._save_on_exit(save)
            raise
        yield finished

    def _save_on_exit(self, save: Callable[[], str] | None) -> None:
        """Write the run as it was after its last step, unless it lies on disk like that."""
        if save and self._is_consistent and self.state.step > self._last_saved_step:
            self._try_save(save)

    def _try_save(self, save: Callable[[], str]) -> str:
        error = save()
        if not error:
            self._last_saved_step = self.state.step
        return error

    def step(self, interrupted: Callable[[], bool] = lambda: False) -> TrainStep:
        """Take one step of the optimisers.

        Raises NotANumber or Interrupted, with everything as it was.
        """
        plan, state, world_size = self.plan, self.state, self.distributed.world_size
        self._is_consistent = False
        lr = plan.lr * lr_scale(state.step + 1, plan)
        self.model.train()
        starts = self.train.training_starts(
            state.step * plan.batch_size, plan.batch_size, plan.seed
        )
        # Every process knows the whole batch, and reads its share of it.
        n_targets = (
            plan.batch_size * plan.context_length
            if self.train.loss_mask is None
            else self._count_targets(starts)
        )
        micro_batches = np.array_split(
            starts[self.distributed.rank :: world_size], plan.grad_accum_steps
        )
        total = torch.zeros((), device=self.device)
        with self.cancellable(interrupted):
            for number, micro_batch in enumerate(micro_batches, 1):
                is_last = number == len(micro_batches)
                with nullcontext() if is_last else self.distributed.no_sync(self._forward):
                    loss = self.loss(micro_batch, plan.label_smoothing) / n_targets
                    # The processes' gradients are averaged.
                    (loss * world_size).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        loss_value = self.distributed.all_reduce(total).item()
        norm = full_tensor(
            torch.nn.utils.clip_grad_norm_(
                self.trainable_parameters.values(), plan.grad_clip or math.inf
            )
        ).item()
        if not math.isfinite(loss_value + norm):
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            raise NonFiniteLoss
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.tokens += plan.batch_size * plan.context_length
        state.seconds = perf_counter() - self._started
        self._record_loss(loss_value)
        self._is_consistent = True
        return TrainStep(state.step, loss_value, lr, norm, state.tokens, state.seconds)

    def cancellable(self, interrupted: Callable[[], bool]) -> AbstractContextManager[None]:
        """Let what computes a step be stopped half-way, if it takes long; Interrupted leaves no
        trace of it.
        """
        plan, work = (
            self.plan,
            self.model.config.n_params * self.plan.batch_size * self.plan.context_length,
        )
        if work < _MIN_CANCELLABLE_WORK or self.distributed.world_size > 1 or plan.compile:
            return nullcontext()
        return cancellable(self.model, interrupted, restores_rng=bool(plan.dropout))

    def _count_targets(self, starts: NDArray[np.int64]) -> int:
        return max(1, int((self.train.batch(starts)[1] != IGNORE_INDEX).sum()))

    def loss(self, starts: NDArray[np.int64], smoothing: float = 0.0) -> Tensor:
        """Return the sum of the losses over the windows that begin at `starts`, in nats."""
        inputs, targets = (
            each.to(self.device, non_blocking=True) for each in self.train.batch(starts)
        )
        return self.summed_loss(inputs, targets, smoothing)

    def summed_loss(self, inputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the sum of the losses of (b, t) targets given (b, t) inputs, in nats."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"
        ):
            logits = self._forward(inputs)  # (b, t, v)
        flat = logits.float().flatten(0, 1)
        return F.cross_entropy(
            flat,
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def _record_loss(self, loss: float) -> None:
        """Keep the loss for the curve: each of its points is the mean of a stretch of steps."""
        state = self.state
        state.recent_losses.append(loss)
        if len(state.recent_losses) >= max(1, self.plan.steps // _CURVE_POINTS):
            state.curve.append(
                (state.step, round(sum(state.recent_losses) / len(state.recent_losses), 4))
            )
            state.recent_losses.clear()

    def _is_save_due(self) -> bool:
        plan, steps_since_save = self.plan, self.state.step - self._save_due_step
        by_time = (
            plan.save_minutes and perf_counter() - self._save_due_time >= 60 * plan.save_minutes
        )
        due = steps_since_save > 0 and bool(
            (plan.save_steps and steps_since_save >= plan.save_steps) or by_time
        )
        if self.distributed.any_rank(due, self.device):
            self._save_due_step, self._save_due_time = self.state.step, perf_counter()
            return True
        return False

    # -- measuring

    def eval_token_counts(self) -> tuple[int, int]:
        """Return how many tokens a measurement on the way reads, and how many the one at the end
        of the plan.
        """
        plan = self.plan
        final_starts = self._final_eval_starts(
            plan.steps * plan.batch_size * plan.context_length,
            _MIN_EVAL_TOKENS,
            _MIN_FINAL_EVAL_TOKENS,
        )
        eval_tokens, final_eval_tokens = (
            sum(map(len, starts)) * plan.context_length
            for starts in (self._eval_starts(), final_starts)
        )
        return eval_tokens, final_eval_tokens

    def _eval_starts(self) -> tuple[Starts, Starts]:
        """Return what a measurement on the way reads of both parts."""
        step_tokens = self.plan.eval_interval * self.plan.batch_size * self.plan.context_length
        # training costs three times as much as reading
        max_tokens = max(_MIN_EVAL_TOKENS, int(step_tokens * 3 * _MAX_EVAL_SHARE))
        return self.train.evenly_spaced_starts(
            max_tokens // 2 if self.val else max_tokens
        ), self.val.disjoint_starts(max_tokens) if self.val else _NO_STARTS

    def _final_eval_starts(
        self, trained_tokens: int, min_tokens: int, max_tokens: int
    ) -> tuple[Starts, Starts]:
        """Return what the last measurement reads of both parts, after so many tokens."""
        max_tokens = (
            max_tokens
            if max_tokens == min_tokens
            else max(max_tokens, int(trained_tokens * 3 * _MAX_EVAL_SHARE))
        )
        return self.train.evenly_spaced_starts(
            min_tokens if self.val else max_tokens
        ), self.val.disjoint_starts(max_tokens) if self.val else _NO_STARTS

    def _evaluate(self, interrupted: Callable[[], bool]) -> Evaluated:
        """Measure both losses. Raises NotANumber, and Interrupted with nothing noted."""
        state = self.state
        train, val = self._losses(self._eval_starts(), interrupted)
        loss = train if val is None else val
        if not math.isfinite(loss + train):
            raise NonFiniteLoss
        is_best = loss < state.best_loss
        state.train_loss = train
        if state.last_eval_step < 0:
            state.first_loss = loss
        if (
            is_best or val is None
        ):  # without a text held out there is no knowing better than the last
            state.best_loss, state.best_step, state.evals_since_best = loss, state.step, 0
            self.best_weights = self._copy_weights()
        else:
            state.evals_since_best += 1
        if val is not None:
            state.val_curve.append((state.step, round(val, 4)))
        state.last_eval_step = state.step
        state.seconds = perf_counter() - self._started
        return Evaluated(state.step, train, val, loss * self._bits_per_character_scale, is_best)

    @torch.no_grad()
    def mean_loss(
        self,
        split: Split,
        starts: NDArray[np.int64],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> float:
        """Return the mean loss over the windows at `starts`, in nats per token that counts.

        Raises Interrupted between two groups of windows, where one process reads them all.
        """
        self.model.eval()
        mine = starts[self.distributed.rank :: self.distributed.world_size]
        totals = torch.zeros(2, dtype=torch.float64)
        tokens = min(_EVAL_BATCH_TOKENS, _EVAL_MULTIPLICATIONS // self.model.config.n_params)
        batch_size = max(1, tokens // split.context_length)
        for first in range(0, len(mine), batch_size):
            if first and self.distributed.world_size == 1 and interrupted():
                raise Cancelled
            inputs, targets = split.batch(mine[first : first + batch_size])
            summed = self.summed_loss(inputs.to(self.device), targets.to(self.device))
            totals += torch.tensor(
                [summed.item(), float((targets != IGNORE_INDEX).sum())], dtype=torch.float64
            )
        total, count = self.distributed.all_reduce(
            totals.to(self.device) if self.distributed.world_size > 1 else totals
        ).tolist()
        return float(total / max(1.0, count))

    def _finish(self, reason: Reason, interrupted: Callable[[], bool]) -> Finished:
        """Leave the model with the weights to keep, and measure these: over the whole text, or an
        even part of it.

        Of less of it once somebody waits.
        """
        state = self.state
        quick_tokens = min(
            _MIN_EVAL_TOKENS,
            max(self.plan.context_length, _EVAL_MULTIPLICATIONS // self.model.config.n_params),
        )
        min_tokens = quick_tokens if reason == "interrupt" else _MIN_EVAL_TOKENS
        if reason != "diverged" and (self.val is None or state.last_eval_step != state.step):
            # What came after the last measurement counts too: it is kept unless it is known to be
            # worse.
            keeps_latest = (
                self.val is None
                or self.mean_loss(self.val, self.val.disjoint_starts(min_tokens)) < state.best_loss
            )
        else:
            keeps_latest = False
        kept_step = state.step if keeps_latest else state.best_step
        if not keeps_latest:
            self.load_weights(self.best_weights)
        is_interrupted = reason == "interrupt"
        final_starts = self._final_eval_starts(
            state.tokens, min_tokens, min_tokens if is_interrupted else _MIN_FINAL_EVAL_TOKENS
        )
        try:
            train, val = self._losses(
                final_starts, (lambda: False) if is_interrupted else interrupted
            )
        except Cancelled:
            train, val = self._losses(
                self._final_eval_starts(state.tokens, quick_tokens, quick_tokens)
            )
        loss = train if val is None else val
        return Finished(
            reason,
            state.step,
            kept_step,
            state.tokens,
            state.seconds,
            state.first_loss,
            loss,
            train,
            val,
            loss * self._bits_per_character_scale,
            tuple(state.curve),
            tuple(state.val_curve),
        )

    def _losses(
        self, starts: tuple[Starts, Starts], interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[float, float | None]:
        """Return the losses of both parts over the windows that begin there. Raises Interrupted."""
        train_starts, val_starts = starts
        train = self.mean_loss(self.train, train_starts, interrupted)
        return train, self.mean_loss(self.val, val_starts, interrupted) if self.val else None

    # -- weights

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.trainable_parameters.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Put weights by name in the place of those that are trained."""
        for name, parameter in self.trainable_parameters.items():
            parameter.copy_(weights[name])


def lr_scale(step: int, plan: TrainPlan) -> float:
    """Return the share of the learning rate at `step` (from 1): up over the first few, then as
    the plan says.
    """
    warm = step / max(1, plan.warmup_steps)
    remaining = (plan.steps - step + 1) / plan.steps
    match plan.schedule:
        case "linear":
            return min(1.0, warm, 2 * remaining)
        case "cosine":
            return min(1.0, warm) * (1 + math.cos(math.pi * (1 - remaining))) / 2
    return min(1.0, warm)


def _make_optimizers(
    model: LanguageModel,
    trainable_parameters: dict[str, nn.Parameter],
    plan: TrainPlan,
    dtype: Callable[[], torch.dtype],
) -> dict[str, torch.optim.Optimizer]:
    matrices = [each for each in model.blocks.parameters() if each.ndim == 2 and each.requires_grad]
    matrix_ids = set(map(id, matrices))
    other_parameters = [
        each for each in trainable_parameters.values() if id(each) not in matrix_ids
    ]
    # betas as in GPT-3. Only the matrices decay; what is left are embeddings, norms, biases and the
    # head.
    adamw = partial(torch.optim.AdamW, lr=plan.lr, betas=(0.9, 0.95), fused=True)
    if plan.optimizer == "adamw":
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": plan.weight_decay},
            {"params": other_parameters, "weight_decay": 0.0},
        ]
        return {"adamw": adamw([group for group in groups if group["params"]])}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "muon": Muon(matrices, plan.lr, plan.weight_decay, dtype)
    }
    if other_parameters:
        optimizers["adamw"] = adamw(other_parameters, weight_decay=0.0)
    return optimizers


def _add_dropout(model: LanguageModel, p: float) -> None:
    """Leave out a share of the embedding's numbers, and of what each block adds to the stream."""

    def drop(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, p, module.training)

    ends = ("token_embedding", "attention.proj", "mlp.down")
    for name, module in model.named_modules():
        if name.endswith(ends):
            module.register_forward_hook(drop)
