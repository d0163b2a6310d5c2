"""One pass over a text: attention, residual stream, what parts add.

Layers, heads and positions count from 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Likely, Row


@dataclass(frozen=True)
class Pattern:
    """What a head could be doing on a text, and how much of its attention does it."""

    name: str  # `previous token`
    # share of the weight that goes there: the mean over the positions that have such a place
    score: float
    chance: float  # the same if each of these attended evenly to all positions that it sees
    places: int  # how many positions that are


@dataclass(frozen=True)
class HeadView(Truncation):
    """One attention head on a text."""

    layer: int
    head: int
    tokens: tuple[Token, ...]
    # (time, time): how much the token of the row takes of that of the column; rows sum to 1
    weights: tuple[Row, ...]
    patterns: tuple[Pattern, ...]  # by their scores, the highest first


@dataclass(frozen=True)
class LayerView(Truncation):
    """All heads of a layer, or of all layers."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadView, ...]


@dataclass(frozen=True)
class HeadFocus:
    """Where the last token looked, through one head."""

    layer: int
    head: int
    looked: tuple[tuple[int, float], ...]  # (position, weight), most first
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True)
class FocusView(Truncation):
    """Where the last token looked, through every head."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadFocus, ...]


@dataclass(frozen=True)
class ShapeRow:
    """One tensor on the way from ids to probabilities."""

    name: str  # as in model/hooks.py; or the module that made it, or `input` of the one it enters
    # t tokens, w width, h heads, g heads with a key, d head size, f feed-forward, v vocabulary
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: Row  # the first of the last token's; where there are several heads, of head 0


@dataclass(frozen=True)
class ShapesView(Truncation):
    """The whole way through the model, as the shapes of what is made on it."""

    text: str
    tokens: tuple[Token, ...]
    rows: tuple[ShapeRow, ...]  # of the blocks the whole first, and how the last one ends
    sampling: str  # the samplers that are on
    candidates: int  # tokens that can be drawn
    drawn: tuple[Likely, ...]  # the likeliest of them, with the probability of being drawn


def sizes(rows: Iterable[ShapeRow]) -> dict[str, int]:
    """Return how large each dimension is."""
    return {dim: size for row in rows for dim, size in zip(row.dims, row.shape, strict=True)}
