"""The training loop: Muon for the matrices inside the blocks, AdamW for the rest; it yields, and
prints nothing.

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
from minillm_repl.training.cancellation import STOPPED_EARLY, Interrupted, stopping
from minillm_repl.training.distributed import Processes, whole
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
from minillm_repl.training.windows import IGNORED, Part

_AT_ONCE = 16_384  # tokens of a measurement that are read together,
# and fewer of a large model: so many multiplications, a fraction of a second
_WORK_AT_ONCE = 20_000_000_000
# multiplications a step, from which on each of its blocks asks whether to stop
_WORTH_ASKING = 2_000_000_000
_LEAST_MEASURED = 8_192  # tokens: a measurement on the way shows no less, where there are so many
_LEAST_AT_LAST = 1 << 17  # tokens: of the weights that are kept
_MEASURING = 0.15  # of the work of training, at most, above that
_POINTS = 200  # on a recorded loss curve
Starts = NDArray[np.int64]
_NOTHING: Starts = np.empty(0, np.int64)


@dataclass
class State:
    """Where a run is, as far as it is no tensor: what is in a resume file as JSON."""

    step: int = 0
    measured: int = -1  # the step after which the losses were last measured
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float = 0.0
    train_loss: float = 0.0  # when last measured
    # the lowest measured loss that counts, and the step it was measured after
    best: float = sys.float_info.max
    best_step: int = 0
    waited: int = 0  # measurements since
    stretch: list[float] = field(default_factory=list)  # losses since the last point of the curve
    curve: list[tuple[int, float]] = field(default_factory=list)
    val_curve: list[tuple[int, float]] = field(default_factory=list)


class NotANumber(Exception):  # noqa: N818 - told in the Finished event
    """The loss or a gradient is no longer a finite number."""


class Trainer:
    """One run of a settled plan: a model, trained in place on the device it is on.

    `per_token` turns the mean loss into bits per character: it is tokens / characters / ln 2 of the
    measured text.
    """

    def __init__(
        self,
        model: LanguageModel,
        train: Part,
        val: Part | None,
        plan: TrainPlan,
        per_token: float = 1.0,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.train, self.val, self.plan = model, train, val, plan
        self.processes = processes or Processes()
        self.state = State()
        self.device = next(model.parameters()).device
        self._per_token = per_token
        if plan.dropout:
            _drop_out(model, plan.dropout)
        if plan.shard:
            self.processes.shard(model)
        compiled: nn.Module = torch.compile(model) if plan.compile else model  # type: ignore[assignment]
        self._forward = self.processes.wrap(compiled, sharded=plan.shard)
        self.trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.optimizers = _optimizers(model, self.trained, plan, self._precise)
        self.best_weights = self._weights()

    def _precise(self) -> torch.dtype:
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
        self._clock = perf_counter() - state.seconds
        self._saved_step, self._saved_at = state.step, perf_counter()
        self._on_disk, self._whole = state.step, True
        reason: Reason = "done"
        try:
            while True:
                if state.measured != state.step and (
                    state.step % plan.every == 0 or state.step == plan.steps
                ):
                    yield self._measure(interrupted)
                    if plan.patience and state.waited >= plan.patience:
                        reason = "patience"
                        break
                if save and self._save_due():
                    why = self._written(save)
                    yield NotSaved(state.step, why) if why else Saved(state.step)
                if state.step == plan.steps:
                    break
                if self.processes.any(interrupted(), self.device):
                    raise Interrupted
                yield self.step(interrupted)
        except NotANumber:
            reason = "diverged"
        except Interrupted:  # nothing has been changed since the last step
            self._whole = True
            if state.measured < 0:
                raise UserError(_(STOPPED_EARLY)) from None
            reason = "interrupt"
        except BaseException:
            self._rescue(save)
            raise
        if reason == "interrupt" and state.step:
            self._rescue(save)
        try:
            finished = self._finish(reason, interrupted)
        except BaseException:
            self._rescue(save)
            raise
        yield finished

    def _rescue(self, save: Callable[[], str] | None) -> None:
        """Write the run as it was after its last step, unless it lies on disk like that."""
        if save and self._whole and self.state.step > self._on_disk:
            self._written(save)

    def _written(self, save: Callable[[], str]) -> str:
        why = save()
        if not why:
            self._on_disk = self.state.step
        return why

    def step(self, interrupted: Callable[[], bool] = lambda: False) -> TrainStep:
        """Take one step of the optimisers.

        Raises NotANumber or Interrupted, with everything as it was.
        """
        plan, state, world = self.plan, self.state, self.processes.size
        self._whole = False
        lr = plan.lr * schedule(state.step + 1, plan)
        self.model.train()
        starts = self.train.drawn(state.step * plan.batch, plan.batch, plan.seed)
        # Every process knows the whole batch, and reads its share of it.
        count = plan.batch * plan.context if self.train.learned is None else self._targets(starts)
        parts = np.array_split(starts[self.processes.rank :: world], plan.accumulate)
        total = torch.zeros((), device=self.device)
        with self.stopping(interrupted):
            for number, part in enumerate(parts, 1):
                last = number == len(parts)
                with nullcontext() if last else self.processes.gradients_apart(self._forward):
                    loss = self.loss(part, plan.label_smoothing) / count
                    (loss * world).backward()  # type: ignore[no-untyped-call] # the processes' gradients are averaged
                total += loss.detach()
        loss_value = self.processes.sum(total).item()
        norm = whole(
            torch.nn.utils.clip_grad_norm_(self.trained.values(), plan.clip or math.inf)
        ).item()
        if not math.isfinite(loss_value + norm):
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            raise NotANumber
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.tokens += plan.batch * plan.context
        state.seconds = perf_counter() - self._clock
        self._note(loss_value)
        self._whole = True
        return TrainStep(state.step, loss_value, lr, norm, state.tokens, state.seconds)

    def stopping(self, interrupted: Callable[[], bool]) -> AbstractContextManager[None]:
        """Let what computes a step be stopped half-way, if it takes long; Interrupted leaves no
        trace of it.
        """
        plan, work = self.plan, self.model.config.parameters * self.plan.batch * self.plan.context
        if work < _WORTH_ASKING or self.processes.size > 1 or plan.compile:
            return nullcontext()
        return stopping(self.model, interrupted, random=bool(plan.dropout))

    def _targets(self, starts: NDArray[np.int64]) -> int:
        return max(1, int((self.train.at(starts)[1] != IGNORED).sum()))

    def loss(self, starts: NDArray[np.int64], smoothing: float = 0.0) -> Tensor:
        """Return the sum of the losses over the windows that begin at `starts`, in nats."""
        inputs, targets = (
            each.to(self.device, non_blocking=True) for each in self.train.at(starts)
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
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def _note(self, loss: float) -> None:
        """Keep the loss for the curve: each of its points is the mean of a stretch of steps."""
        state = self.state
        state.stretch.append(loss)
        if len(state.stretch) >= max(1, self.plan.steps // _POINTS):
            state.curve.append((state.step, round(sum(state.stretch) / len(state.stretch), 4)))
            state.stretch.clear()

    def _save_due(self) -> bool:
        plan, done = self.plan, self.state.step - self._saved_step
        by_time = plan.save_minutes and perf_counter() - self._saved_at >= 60 * plan.save_minutes
        due = done > 0 and bool((plan.save_steps and done >= plan.save_steps) or by_time)
        if self.processes.any(due, self.device):
            self._saved_step, self._saved_at = self.state.step, perf_counter()
            return True
        return False

    # -- measuring

    def readings(self) -> tuple[int, int]:
        """Return how many tokens a measurement on the way reads, and how many the one at the end
        of the plan.
        """
        plan = self.plan
        at_last = self._read_at_last(
            plan.steps * plan.batch * plan.context, _LEAST_MEASURED, _LEAST_AT_LAST
        )
        each, last = (
            sum(map(len, starts)) * plan.context for starts in (self._read_on_the_way(), at_last)
        )
        return each, last

    def _read_on_the_way(self) -> tuple[Starts, Starts]:
        """Return what a measurement on the way reads of both parts."""
        step_tokens = self.plan.every * self.plan.batch * self.plan.context
        # training costs three times as much as reading
        most = max(_LEAST_MEASURED, int(step_tokens * 3 * _MEASURING))
        return self.train.even(most // 2 if self.val else most), self.val.apart(
            most
        ) if self.val else _NOTHING

    def _read_at_last(self, trained: int, least: int, most: int) -> tuple[Starts, Starts]:
        """Return what the last measurement reads of both parts, after training on so many
        tokens.
        """
        most = most if most == least else max(most, int(trained * 3 * _MEASURING))
        return self.train.even(least if self.val else most), self.val.apart(
            most
        ) if self.val else _NOTHING

    def _measure(self, interrupted: Callable[[], bool]) -> Evaluated:
        """Measure both losses. Raises NotANumber, and Interrupted with nothing noted."""
        state = self.state
        train, val = self._losses(self._read_on_the_way(), interrupted)
        loss = train if val is None else val
        if not math.isfinite(loss + train):
            raise NotANumber
        best = loss < state.best
        state.train_loss = train
        if state.measured < 0:
            state.first_loss = loss
        if best or val is None:  # without a text held out there is no knowing better than the last
            state.best, state.best_step, state.waited = loss, state.step, 0
            self.best_weights = self._weights()
        else:
            state.waited += 1
        if val is not None:
            state.val_curve.append((state.step, round(val, 4)))
        state.measured = state.step
        state.seconds = perf_counter() - self._clock
        return Evaluated(state.step, train, val, loss * self._per_token, best)

    @torch.no_grad()
    def mean_loss(
        self, part: Part, starts: NDArray[np.int64], interrupted: Callable[[], bool] = lambda: False
    ) -> float:
        """Return the mean loss over the windows that begin at `starts`, in nats per token that
        counts.

        Raises Interrupted between two groups of windows, where one process reads them all.
        """
        self.model.eval()
        mine = starts[self.processes.rank :: self.processes.size]
        totals = torch.zeros(2, dtype=torch.float64)
        tokens = min(_AT_ONCE, _WORK_AT_ONCE // self.model.config.parameters)
        at_once = max(1, tokens // part.context)
        for first in range(0, len(mine), at_once):
            if first and self.processes.size == 1 and interrupted():
                raise Interrupted
            inputs, targets = part.at(mine[first : first + at_once])
            summed = self.summed_loss(inputs.to(self.device), targets.to(self.device))
            totals += torch.tensor(
                [summed.item(), float((targets != IGNORED).sum())], dtype=torch.float64
            )
        total, count = self.processes.sum(
            totals.to(self.device) if self.processes.size > 1 else totals
        ).tolist()
        return float(total / max(1.0, count))

    def _finish(self, reason: Reason, interrupted: Callable[[], bool]) -> Finished:
        """Leave the model with the weights to keep, and measure these: over the whole text, or an
        even part of it.

        Of less of it once somebody waits.
        """
        state = self.state
        quick = min(
            _LEAST_MEASURED, max(self.plan.context, _WORK_AT_ONCE // self.model.config.parameters)
        )
        least = quick if reason == "interrupt" else _LEAST_MEASURED
        if reason != "diverged" and (self.val is None or state.measured != state.step):
            # What came after the last measurement counts too: it is kept unless it is known to be
            # worse.
            keep = self.val is None or self.mean_loss(self.val, self.val.apart(least)) < state.best
        else:
            keep = False
        kept = state.step if keep else state.best_step
        if not keep:
            self.load(self.best_weights)
        hurried = reason == "interrupt"
        at_last = self._read_at_last(state.tokens, least, least if hurried else _LEAST_AT_LAST)
        try:
            train, val = self._losses(at_last, (lambda: False) if hurried else interrupted)
        except Interrupted:
            train, val = self._losses(self._read_at_last(state.tokens, quick, quick))
        loss = train if val is None else val
        return Finished(
            reason,
            state.step,
            kept,
            state.tokens,
            state.seconds,
            state.first_loss,
            loss,
            train,
            val,
            loss * self._per_token,
            tuple(state.curve),
            tuple(state.val_curve),
        )

    def _losses(
        self, starts: tuple[Starts, Starts], interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[float, float | None]:
        """Return the losses of both parts over the windows that begin there. Raises Interrupted."""
        first, second = starts
        train = self.mean_loss(self.train, first, interrupted)
        return train, self.mean_loss(self.val, second, interrupted) if self.val else None

    # -- weights

    def _weights(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.trained.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights by name in the place of those that are trained."""
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])


def schedule(step: int, plan: TrainPlan) -> float:
    """Return the share of the learning rate at `step` (from 1): up over the first few, then as
    the plan says.
    """
    warm = step / max(1, plan.warm_up)
    left = (plan.steps - step + 1) / plan.steps
    match plan.schedule:
        case "linear":
            return min(1.0, warm, 2 * left)
        case "cosine":
            return min(1.0, warm) * (1 + math.cos(math.pi * (1 - left))) / 2
    return min(1.0, warm)


def _optimizers(
    model: LanguageModel,
    trained: dict[str, nn.Parameter],
    plan: TrainPlan,
    dtype: Callable[[], torch.dtype],
) -> dict[str, torch.optim.Optimizer]:
    inside = [each for each in model.blocks.parameters() if each.ndim == 2 and each.requires_grad]
    known = set(map(id, inside))
    rest = [each for each in trained.values() if id(each) not in known]
    # betas as in GPT-3. Only the matrices decay; what is left are embeddings, norms, biases and the
    # head.
    adamw = partial(torch.optim.AdamW, lr=plan.lr, betas=(0.9, 0.95), fused=True)
    if plan.optimizer == "adamw":
        groups: list[dict[str, Any]] = [
            {"params": inside, "weight_decay": plan.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        return {"adamw": adamw([group for group in groups if group["params"]])}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "muon": Muon(inside, plan.lr, plan.weight_decay, dtype)
    }
    if rest:
        optimizers["adamw"] = adamw(rest, weight_decay=0.0)
    return optimizers


def _drop_out(model: LanguageModel, share: float) -> None:
    """Leave out a share of the embedding's numbers, and of what each block adds to the residual
    stream.
    """

    def drop(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, share, module.training)

    ends = ("token_embedding", "attention.proj", "ff.down")
    for name, module in model.named_modules():
        if name.endswith(ends):
            module.register_forward_hook(drop)
