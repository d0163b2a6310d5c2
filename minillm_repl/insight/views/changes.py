"""What changes when the model does: silenced, steered, patched, trained.

Layers, heads and positions count from 0.
"""

from dataclasses import dataclass

from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.attn import FocusView
from minillm_repl.views.base import Likely, Row
from minillm_repl.views.lens import LensView


@dataclass(frozen=True)
class Averaged:
    """The tokens of a text whose activations were averaged."""

    after: tuple[Token, ...]  # what stands before them
    tokens: tuple[Token, ...]
    first: int  # the position of the first of them


@dataclass(frozen=True)
class Yardstick:
    """What a change of the same size does in random directions; KL in nats."""

    directions: int
    low: float  # the 5th percentile of their KL
    high: float  # and the 95th
    below: float  # percent of them that have a smaller KL than the change


@dataclass(frozen=True)
class EffectView(Truncation):
    """What a change of the model's thinking does to the next token."""

    tokens: tuple[Token, ...]
    change: str  # what was done: `without head 2.1`
    before: tuple[Likely, ...]
    after: tuple[Likely, ...]
    kl: float  # nats: KL(after ‖ before) = Σ after · ln(after / before)
    # the median of the same in random directions, where the change is a direction
    kl_random: float | None
    random: Yardstick | None  # more of these
    between: tuple[Averaged, Averaged] | None  # where the direction leads to, and away from


@dataclass(frozen=True)
class HeadEffect:
    """What silencing one head does to the loss on a text."""

    layer: int
    head: int
    change: float  # nats per token: above 0, the text is told worse without it


@dataclass(frozen=True)
class ScanView(Truncation):
    """All heads, by what the loss on a text is without each."""

    tokens: tuple[Token, ...]
    loss: float  # nats per token, with all of them
    how: str  # zero or mean
    heads: tuple[HeadEffect, ...]  # most needed first


@dataclass(frozen=True)
class PatchView:
    """Prompt B with one activation of prompt A each: how much of A's answer it carries over."""

    what: str  # residual, attention or feed-forward
    a: tuple[Token, ...]
    b: tuple[Token, ...]
    answer_a: Token
    answer_b: Token
    # whether these are the likeliest after A and B, or, where that is one, what most tells them
    # apart
    likeliest: bool
    clean: float  # logit of A's answer less that of B's, after A
    corrupt: float  # the same after B
    places: tuple[str, ...]  # from the bottom up
    effects: tuple[Row, ...]  # (place, position): 0 is as after B, 1 as after A


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
