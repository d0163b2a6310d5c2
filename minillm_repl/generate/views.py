"""What can be told of the next token without a look inside: frozen views, numbers and labels."""

from dataclasses import dataclass

from minillm_repl.generate.events import Reason
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation

Row = tuple[float, ...]


@dataclass(frozen=True)
class Stage:
    """The distribution after one sampler."""

    # `model` before all of them, then `temp 0.8`, `top-k 40` ... in the order of their application
    name: str
    kept: int  # tokens that can still be drawn
    cut: int  # tokens that this sampler took away
    entropy: float  # bits


@dataclass(frozen=True)
class SamplerCandidate:
    """A token on its way through the samplers."""

    token: Token
    logit: float
    seen: bool  # whether it is in the text already, which is what the repetition penalty is about
    probs: tuple[float | None, ...]  # after each stage; None once it is cut


@dataclass(frozen=True)
class SamplerView(Truncation):
    """From logits to what is drawn from, stage by stage."""

    after: Token  # the last of the text
    stages: tuple[Stage, ...]
    candidates: tuple[SamplerCandidate, ...]  # the likeliest by the model


@dataclass(frozen=True)
class TemperatureCandidate:
    """A token's probability of being drawn at each temperature."""

    token: Token
    probs: tuple[float | None, ...]  # None where a sampler cuts it


@dataclass(frozen=True)
class SweepView(Truncation):
    """The same candidates at several temperatures, the other samplers being as they are set."""

    after: Token
    temps: Row
    now: float  # the temperature that is set
    entropies: Row  # bits, of what is drawn from
    candidates: tuple[TemperatureCandidate, ...]


@dataclass(frozen=True)
class ContinuationToken:
    """One token of a continuation that was asked about."""

    token: Token
    prob: float  # by the model's own softmax, after the text and the tokens before it
    rank: int  # 1 = likeliest
    likeliest: Token  # what the model would rather have said
    likeliest_prob: float


@dataclass(frozen=True)
class ProbView(Truncation):
    """How likely the model finds a continuation."""

    after: Token
    chances: tuple[ContinuationToken, ...]
    prob: float  # of all of it: the product
    bits: float  # its surprisal, −log2 of that


@dataclass(frozen=True)
class Branch:
    """One way on."""

    tokens: tuple[Token, ...]
    probs: Row  # of each token by the model's own softmax
    prob: float  # their product
    reason: Reason  # why it ended
    # how many of the tokens its text is of: not one that ends it, nor those of a stop string
    said: int


@dataclass(frozen=True)
class BranchesView(Truncation):
    """Several ways on from the same text; drawn with the seeds `seed`, `seed` + 1 ..."""

    after: Token
    seed: int
    branches: tuple[Branch, ...]
