"""The training loop: it takes steps, measures, and yields what happens; it prints nothing.

`Trainer.step` is one turn of nanoGPT's loop: batch, loss, gradients, clipping, learning rate,
optimisers. `Trainer.events` is the loop, which also evaluates and saves.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.layers import add_dropout, recompute_activations
from minillm_repl.training import (
    STOPPED_EARLY,
    Cancelled,
    Evaluated,
    Evaluating,
    NonFiniteLoss,
    NotSaved,
    Reason,
    Saved,
    TrainerState,
    TrainEvent,
    TrainStep,
    never_interrupted,
)
from minillm_repl.training.evaluation import Evaluator, Starts, finish
from minillm_repl.training.machine import Distributed, cancellable, full_tensor
from minillm_repl.training.optimizers import lr_scale, make_optimizers
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.splits import IGNORE_INDEX, Split

_RETRY_SECONDS = 30.0  # from a save that failed to the next try: a full disk may have been cleared


class Trainer:
    """Trains a model in place, by a plan in which nothing is left at auto.

    `bits_per_character_scale` is tokens / characters / ln 2 of the split that is measured.
    `dtype` is that of the weights when they are stored.
    """

    def __init__(
        self,
        model: LanguageModel,
        train: Split,
        val: Split | None,
        plan: TrainPlan,
        bits_per_character_scale: float = 1.0,
        distributed: Distributed | None = None,
        dtype: str = "float32",
    ) -> None:
        self.dtype = dtype  # in which the weights that are kept are stored
        self.model, self.train, self.val, self.plan = model, train, val, plan
        self.distributed = distributed or Distributed()
        self.state = TrainerState()
        self.device = next(model.parameters()).device
        self.bits_per_character_scale = bits_per_character_scale
        if plan.dropout:
            add_dropout(model, plan.dropout)
        if plan.grad_checkpointing == "on":
            recompute_activations(model)
        if plan.shard:
            self.distributed.shard(model)
        forward: Any = torch.compile(model) if plan.compile else model
        is_wrapped = self.distributed.world_size > 1 and not plan.shard
        self._forward = self.distributed.wrap(forward) if is_wrapped else forward
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.trainable_parameters = trained
        self.best_weights = self.copy_weights()
        self.optimizers = make_optimizers(model, trained, plan, self._compute_dtype)
        self.evaluator = Evaluator(model, train, val, plan, self.distributed, self.loss)

    def _compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.plan.precision == "bfloat16" else torch.float32

    def events(
        self, interrupted: Callable[[], bool], save: Callable[[], str] | None = None
    ) -> Iterator[TrainEvent]:
        """Train until the plan's last step, and yield what happens.

        `interrupted` is asked between two steps. `save` writes the run to disk when the plan says
        so, when the generator is closed, and when anything fails; it returns why it could not, or
        an empty text. Raises UserError if stopped before the first evaluation is complete.
        """
        state = self.state
        self._started = perf_counter() - state.seconds  # as if it had never stopped
        self._save_due_step, self._save_due_time = state.step, perf_counter()
        self._last_saved_step, self._is_consistent = state.step, True
        self._has_save_failed = False
        try:
            reason = yield from self._take_steps(interrupted, save)
        except BaseException:
            self._save_on_exit(save)
            raise
        if reason == "interrupt" and state.step:
            self._save_on_exit(save)
        try:
            yield Evaluating(state.step)
            finished = finish(self, reason, interrupted)
        except BaseException:
            self._save_on_exit(save)
            raise
        yield finished

    def _take_steps(
        self, interrupted: Callable[[], bool], save: Callable[[], str] | None
    ) -> Generator[TrainEvent, None, Reason]:
        """Evaluate, save and take steps in turn; return why that ended."""
        plan, state = self.plan, self.state
        try:
            while True:
                # Also before the first step: how good is a model that has learnt nothing?
                is_eval_due = state.step % plan.eval_interval == 0 or state.step == plan.steps
                if is_eval_due and state.last_eval_step != state.step:
                    yield Evaluating(state.step)
                    yield self._evaluate(interrupted)
                    if plan.patience and state.evals_since_best >= plan.patience:
                        return "patience"
                if save and self._is_save_due():
                    error = self._try_save(save)
                    yield NotSaved(state.step, error) if error else Saved(state.step)
                if state.step == plan.steps:
                    return "done"
                if self._is_any(interrupted()):
                    raise Cancelled
                yield self.step(interrupted)
        except NonFiniteLoss:
            return "diverged"
        except Cancelled:  # nothing has been changed since the last step
            self._is_consistent = True
            if state.last_eval_step < 0:
                raise UserError(_(STOPPED_EARLY)) from None
            return "interrupt"

    def _save_on_exit(self, save: Callable[[], str] | None) -> None:
        """Write the run as it was after its last step, unless it lies on disk like that."""
        if save and self._is_consistent and self.state.step > self._last_saved_step:
            self._try_save(save)

    def _try_save(self, save: Callable[[], str]) -> str:
        error = save()
        self._has_save_failed = bool(error)
        if not error:
            self._last_saved_step = self.state.step
        return error

    def step(self, interrupted: Callable[[], bool] = never_interrupted) -> TrainStep:
        """Take one step of the optimisers.

        Raises NonFiniteLoss or Cancelled, with everything as it was.
        """
        plan, state, started = self.plan, self.state, perf_counter()
        self._is_consistent = False
        first = state.step * plan.batch_size  # windows read so far: a resumed run reads on
        starts = self.train.training_starts(first, plan.batch_size, plan.seed)  # (batch,)
        loss = self._backward(starts, interrupted)
        parameters = self.trainable_parameters.values()
        clip = plan.grad_clip or math.inf  # 0 is off: then the norm is only measured
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, clip)).item()
        if not math.isfinite(loss + norm):  # before any weight is changed by it
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            raise NonFiniteLoss
        lr = plan.lr * lr_scale(state.step + 1, plan)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_factor", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.tokens += plan.batch_size * plan.context_length
        state.seconds = perf_counter() - self._started
        state.step_seconds += perf_counter() - started
        state.record_loss(loss, plan.steps)
        self._is_consistent = True
        return TrainStep(
            step=state.step,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens=state.tokens,
            seconds=state.seconds,
        )

    def _backward(self, starts: Starts, interrupted: Callable[[], bool]) -> float:
        """Compute the gradients of a batch, one micro-batch after the other; return its mean loss.

        Raises Cancelled.
        """
        plan, world_size = self.plan, self.distributed.world_size
        n_targets = plan.batch_size * plan.context_length  # b * t; of conversations, the answers
        if self.train.loss_mask is not None:
            n_targets = max(1, int((self.train.batch(starts)[1] != IGNORE_INDEX).sum()))
        mine = starts[self.distributed.rank :: world_size]  # this process's share of the batch
        micro_batches = np.array_split(mine, plan.grad_accum_steps)
        total = torch.zeros((), device=self.device)
        self.model.train()
        with cancellable(self.model, plan, world_size, interrupted):
            for number, micro_batch in enumerate(micro_batches, 1):
                # The gradients add up; the processes exchange them once, after the last part.
                is_last = number == len(micro_batches)
                with nullcontext() if is_last else self.distributed.no_sync(self._forward):
                    loss = self.loss(self.train, micro_batch, plan.label_smoothing)[0] / n_targets
                    # The processes' gradients are averaged, not summed: the factor undoes that.
                    (loss * world_size).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()  # stays on the device: reading it would wait for a GPU
        return self.distributed.all_reduce(total).item()

    def loss(self, split: Split, starts: Starts, smoothing: float = 0.0) -> tuple[Tensor, int]:
        """Return the sum of the losses over windows of a split, in nats, and how many count."""
        inputs, targets = split.batch(starts)  # both (b, t)
        count = int((targets != IGNORE_INDEX).sum())
        inputs = inputs.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        uses_bfloat16 = self.plan.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16):
            logits = self._forward(inputs)  # (b, t, v)
        summed = F.cross_entropy(
            logits.float().flatten(0, 1),  # (b*t, v); bfloat16 is too coarse for a softmax
            targets.flatten(),  # (b*t,)
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return summed, count

    def _is_save_due(self) -> bool:
        plan, steps = self.plan, self.state.step - self._save_due_step
        seconds = perf_counter() - self._save_due_time
        by_steps = bool(plan.save_steps) and steps >= plan.save_steps
        by_time = bool(plan.save_minutes) and seconds >= 60 * plan.save_minutes
        by_time |= self._has_save_failed and seconds >= _RETRY_SECONDS
        if not self._is_any(steps > 0 and (by_steps or by_time)):
            return False
        self._save_due_step, self._save_due_time = self.state.step, perf_counter()
        return True

    def _is_any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any of the processes, so that all go the same way."""
        processes = self.distributed
        return flag if processes.world_size == 1 else processes.any_rank(flag, self.device)

    # -- evaluation

    def _evaluate(self, interrupted: Callable[[], bool]) -> Evaluated:
        """Measure both losses. Raises NonFiniteLoss, and Cancelled with nothing noted."""
        state = self.state
        train, val = self.evaluator.losses(interrupted)
        loss = train if val is None else val
        if not math.isfinite(loss + train):
            raise NonFiniteLoss
        is_best = loss < state.best_loss
        state.train_loss = train
        if state.last_eval_step < 0:
            state.first_loss, state.first_quick_loss = loss, self.evaluator.quick_loss()
        # Without a validation split the latest weights are kept, unless they only got worse.
        if is_best or (val is None and loss < state.first_loss):
            state.best_loss, state.best_step, state.evals_since_best = loss, state.step, 0
            self.best_weights = self.copy_weights()
        else:
            state.evals_since_best += 1
        if val is not None:
            state.val_curve.append((state.step, round(val, 4)))
        state.last_eval_step = state.step
        state.seconds = perf_counter() - self._started
        return Evaluated(
            step=state.step,
            train_loss=train,
            val_loss=val,
            bits_per_character=loss * self.bits_per_character_scale,
            best=is_best,
        )

    @torch.no_grad()
    def round_weights(self) -> None:
        """Give the weights the values that they will have in the file: these are measured."""
        dtype = getattr(torch, self.dtype)
        for parameter in self.trainable_parameters.values():
            parameter.copy_(parameter.to(dtype))

    def copy_weights(self) -> dict[str, Tensor]:
        """Return copies of the weights that are trained, by name."""
        return {name: each.detach().clone() for name, each in self.trainable_parameters.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Put weights by name in the place of those that are trained."""
        for name, parameter in self.trainable_parameters.items():
            parameter.copy_(weights[name])
