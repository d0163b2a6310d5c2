"""What training tells: `TrainStep` after each step, `Evaluated` now and then, one `Finished`; in nats per token."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One step of the optimiser has been taken."""

    step: int  # from 1
    loss: float  # on the batch of this step
    tokens: int  # read so far
    seconds: float  # so far


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The loss over the whole corpus (or an even sample of it) was measured."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Training ended; the model keeps what it has learnt."""

    reason: Literal["done", "interrupt"]
    steps: int
    tokens: int
    seconds: float
    first_loss: float  # over the corpus, before the first step
    last_loss: float  # over the corpus, after the last
    curve: tuple[tuple[int, float], ...]  # (step, loss of its batch), at most a few hundred points
