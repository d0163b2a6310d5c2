"""What training tells, and what it remembers between two steps.

A run tells `Started`, a `TrainStep` after each step, now and then `Evaluating` and `Evaluated`,
`Saved` or `NotSaved`, then `TrainingFinished`. Losses are in nats per token.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from minillm_repl.language import N_

_CURVE_POINTS = 200  # of a recorded loss curve, at most

Reason = Literal["done", "interrupt", "patience", "diverged"]
STOPPED_EARLY = N_("stopped before the first step; nothing was changed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A run begins, or goes on: all that it is made of."""

    step: int  # that have been taken before
    plan: Mapping[str, str]  # every setting, as text that `:train name=value` accepts
    corpus: str  # as typed
    corpus_sha256: str
    val_sha256: str  # of a validation text of its own, else empty
    training_tokens: int
    validation_tokens: int
    parameters: int
    start_sha256: str  # of the weights that it starts from; empty for a new model
    threads: int
    processes: int
    versions: Mapping[str, str]
    machine: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """One step of the optimisers has been taken."""

    step: int  # from 1
    loss: float  # on the batch of this step
    lr: float  # the learning rate of this step
    grad_norm: float  # L2 norm of all gradients together, before clipping
    tokens: int  # read since the run began
    seconds: float  # since the run began; what was spent before a resume included


@dataclass(frozen=True, slots=True)
class Evaluating:
    """The losses are about to be measured, which takes a while."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The losses were measured, each over an even sample of its text, or all of a short one."""

    step: int
    train_loss: float
    val_loss: float | None  # None without a validation part
    # of the validation part if there is one, else of the text that is trained on
    bits_per_character: float
    best: bool  # no measurement before this one was as good


@dataclass(frozen=True, slots=True)
class Saved:
    """The run lies on disk as it is after this step, and can be resumed."""

    step: int


@dataclass(frozen=True, slots=True)
class NotSaved:
    """The run could not be saved after this step; it goes on, and the last save is still there."""

    step: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFinished:
    """Training ended; the model holds the best weights that were measured, or the last where
    nothing was held out.
    """

    reason: Reason
    steps: int  # that were taken
    kept: int  # the step whose weights the model has
    tokens: int
    seconds: float
    step_seconds: float  # of them, those of the steps alone
    first_loss: float  # before the first step: of the validation part if there is one
    last_loss: float  # of the weights that are kept, over the same sample as `first_loss`
    train_loss: float  # of the weights that are kept, over a larger sample
    val_loss: float | None  # the same
    bits_per_character: float
    curve: tuple[tuple[int, float], ...]  # (step, loss of its batch), at most a few hundred points
    val_curve: tuple[tuple[int, float], ...]  # (step, validation loss)


TrainEvent = Started | TrainStep | Evaluating | Evaluated | Saved | NotSaved | TrainingFinished


@dataclass(kw_only=True)
class TrainerState:
    """Where a run is, as far as it is no tensor: a resume file has it as JSON."""

    step: int = 0
    last_eval_step: int = -1  # the step after which the losses were last measured
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0  # of them, those of the steps alone
    first_loss: float = 0.0
    first_quick_loss: float = 0.0  # at the same moment, on the sample after Ctrl-C
    train_loss: float = 0.0  # when last measured
    best_loss: float = sys.float_info.max  # the lowest one measured
    best_step: int = 0  # the step after which it was
    evals_since_best: int = 0
    recent_losses: list[float] = field(default_factory=list)  # since the last point of the curve
    curve: list[tuple[int, float]] = field(default_factory=list)
    val_curve: list[tuple[int, float]] = field(default_factory=list)
    probes: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # `heads.induction`

    def record_loss(self, loss: float, steps: int) -> None:
        """Add the loss of a step to the curve, each point of which is the mean of a stretch of the
        run's `steps`.
        """
        self.recent_losses.append(loss)
        if len(self.recent_losses) >= max(1, steps // _CURVE_POINTS):
            mean = sum(self.recent_losses) / len(self.recent_losses)
            self.curve.append((self.step, round(mean, 4)))
            self.recent_losses.clear()

    def finished(
        self,
        reason: Reason,
        *,
        kept: int,
        first_and_last: tuple[float, float],
        train_loss: float,
        val_loss: float | None,
        scale: float,
    ) -> TrainingFinished:
        """Return the end of the run, with the losses of the weights of step `kept`; `scale` turns a
        loss into bits per character.
        """
        loss = train_loss if val_loss is None else val_loss
        return TrainingFinished(
            reason=reason,
            steps=self.step,
            kept=kept,
            tokens=self.tokens,
            seconds=self.seconds,
            step_seconds=self.step_seconds,
            first_loss=first_and_last[0],
            last_loss=first_and_last[1],
            train_loss=train_loss,
            val_loss=val_loss,
            bits_per_character=loss * scale,
            curve=tuple(self.curve),
            val_curve=tuple(self.val_curve),
        )


def never_interrupted() -> bool:
    """Return False: the default where Ctrl-C has no effect."""
    return False


class Cancelled(Exception):  # noqa: N818 - told in the TrainingFinished event
    """Ctrl-C, in the middle of a step or an evaluation."""


class NonFiniteLoss(Exception):  # noqa: N818 - told in the TrainingFinished event
    """The loss or a gradient is no longer a finite number."""
