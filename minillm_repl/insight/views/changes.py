"""What changes when the model does: silenced, steered, patched, trained.

Layers, heads and positions count from 0.
"""

from dataclasses import dataclass

from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.attn import FocusView
from minillm_repl.views.base import Likely
from minillm_repl.views.lens import LensView


@dataclass(frozen=True)
class Moment(Truncation):
    """What a model made of a prompt after a step of its training."""

    step: int
    prob: float  # of the token that was the likeliest in the end
    top: tuple[Likely, ...]
    lens: LensView
    attention: FocusView


@dataclass(frozen=True)
class WatchView(Truncation):
    """How a model learnt what comes after a prompt."""

    tokens: tuple[Token, ...]
    answer: Token  # the likeliest at the last moment
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class Target:
    """A token that a text says comes next, and how likely the model found it."""

    position: int  # of the token that it comes after
    before: float  # its probability,
    after: float  # and after the step
    nats_before: float  # −ln of these: the loss
    nats_after: float


@dataclass(frozen=True)
class DescentView(Truncation):
    """One step of gradient descent on one text: every weight less `rate` times its gradient."""

    tokens: tuple[Token, ...]
    rate: float
    targets: tuple[Target, ...]
    loss_before: float  # nats: the mean over the targets
    loss_after: float
    weight: str  # the tensor that holds the weight with the largest |gradient|
    index: tuple[int, ...]  # where in it, from 0
    value: float
    gradient: float  # how much the loss grows per unit that it does
    new_value: float
