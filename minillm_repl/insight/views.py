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


def as_json(view: Any) -> dict[str, Any]:
    """Return a view as JSON-ready data, with its name: `LensView` is `lens`. What is no number becomes null."""
    return {"view": type(view).__name__.removesuffix("View").lower(), **_finite(dataclasses.asdict(view))}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
