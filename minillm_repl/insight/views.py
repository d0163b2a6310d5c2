"""What insight tells: frozen views of plain numbers and labels, which can be drawn or written as JSON by these names.

Layers, heads and positions count from 0. A position's row is about what comes after it.
"""

import dataclasses
from dataclasses import dataclass
from math import isfinite
from typing import Any

from minillm_repl.tokenizer.base import Token

Row = tuple[float, ...]


@dataclass(frozen=True)
class Likely:
    """A token that could come next, with the probability that the model's own softmax gives it."""

    token: Token
    prob: float


@dataclass(frozen=True)
class HeadView:
    """One attention head on a text."""

    layer: int
    head: int
    tokens: tuple[Token, ...]
    weights: tuple[Row, ...]  # (time, time): how much the token of the row takes of that of the column; rows sum to 1
    patterns: tuple[tuple[str, float], ...]  # what the head could be doing, and the share of its attention that does it


@dataclass(frozen=True)
class LayerView:
    """All heads of a layer, or of all layers."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadView, ...]


@dataclass(frozen=True)
class HeadFocus:
    """Where the last token looked, through one head."""

    layer: int
    head: int
    looked: tuple[tuple[int, float], ...]  # (position, weight), most first
    patterns: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class FocusView:
    """Where the last token looked, through every head."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadFocus, ...]


@dataclass(frozen=True)
class LensRow:
    """What the model would say if it stopped at one place of the residual stream."""

    place: str  # `embedding`, `0 attention`, `0 feed-forward`; `0 block` where the two work side by side
    top: tuple[Likely, ...]
    prob: float  # of the answer
    rank: int  # of the answer, 1 = likeliest
    kl: float  # nats, from the distribution here to the final one: Σ final · ln(final / here)


@dataclass(frozen=True)
class LensView:
    """The logit lens at one position."""

    position: int
    tokens: tuple[Token, ...]  # up to the position
    answer: Token  # the model's likeliest at the end
    first: str  # the place from which on the answer stays the likeliest
    rows: tuple[LensRow, ...]


@dataclass(frozen=True)
class Piece:
    """One token of a text, and what the embedding makes of it."""

    token: Token
    norm: float  # the length of its vector
    vector: Row  # the first numbers of it


@dataclass(frozen=True)
class TokensView:
    """What a tokenizer makes of a text."""

    characters: int  # of the text as it was given
    bytes: int
    tokens_per_character: float | None  # of the tokens that are text
    bytes_per_token: float | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Surprising:
    """A token that the model did not expect, and what it expected instead."""

    position: int
    token: Token
    bits: float
    rank: int
    expected: tuple[Likely, ...]


@dataclass(frozen=True)
class SurpriseView:
    """How unexpected each token of a text was."""

    first: int  # the position of the first of them; the model saw those before too
    unseen: int  # tokens before position 0, which the model cannot see
    tokens: tuple[Token, ...]
    bits: tuple[float | None, ...]  # the surprisal of each; position 0 has none
    mean: float  # nats
    perplexity: float  # e to the mean
    bits_per_byte: float | None  # of the tokens that are text
    blind: float  # bits: the surprisal of every token if all were equally likely
    most: tuple[Surprising, ...]


@dataclass(frozen=True)
class Difference:
    """What two models say after one position."""

    position: int
    token: Token
    kl: float  # nats: Σ ours · ln(ours / theirs)
    kl_back: float  # nats: Σ theirs · ln(theirs / ours)
    ours: Likely
    theirs: Likely


@dataclass(frozen=True)
class CompareView:
    """Two models on the same text. Pairs are for the open one and the other."""

    names: tuple[str, str]
    tokens: tuple[int, int]  # how many each reads
    top: tuple[tuple[Likely, ...], tuple[Likely, ...]]  # what could come next
    bits_per_byte: tuple[float | None, float | None]
    why: str  # why there is no more to compare; empty if there is
    kl: tuple[float, float] | None  # at the last position: there, and back
    kl_mean: tuple[float, float] | None  # over all positions
    differ: tuple[Difference, ...]  # the positions at which they differ most, by the KL there


@dataclass(frozen=True)
class Part:
    """What one part of the model adds to a logit, or to the difference of two."""

    name: str  # `embedding`, `head 2.1`, `feed-forward 2`, `bias`
    value: float


@dataclass(frozen=True)
class WhyView:
    """Direct logit attribution: the parts add up to the logit, or to the difference of two."""

    tokens: tuple[Token, ...]
    token: Token
    versus: Token | None
    logit: float  # of the token, or how far it is above that of the other
    prob: float  # of the token
    rank: int
    parts: tuple[Part, ...]  # in the order in which the model works


@dataclass(frozen=True)
class StreamRow:
    """The residual stream after one place, as L2 norms at one position."""

    place: str
    added: float  # the norm of what was added here; of the embedding itself in the first row
    stream: float  # the norm of the stream after that
    aligned: float  # cosine between what was added and the stream before it; 0 in the first row


@dataclass(frozen=True)
class ResidualView:
    """The residual stream, layer by layer, at one position."""

    position: int
    tokens: tuple[Token, ...]
    rows: tuple[StreamRow, ...]


def as_json(view: Any) -> dict[str, Any]:
    """Return a view as JSON-ready data, with its name: `LensView` is `lens`. What is no number becomes null."""
    return {"view": type(view).__name__.removesuffix("View").lower(), **_finite(dataclasses.asdict(view))}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
