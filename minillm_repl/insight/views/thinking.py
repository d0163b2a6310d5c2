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
class Met:
    """A key that a query met."""

    position: int
    key: Row  # (head_size,)
    value: Row
    dot: float  # query · key
    scaled: float  # that divided by √head_size
    weight: float  # the softmax of that over all keys that were met


@dataclass(frozen=True)
class QKVView(Truncation):
    """One head at one position: what it asks, whom it meets, and what it takes along."""

    layer: int
    head: int
    position: int
    tokens: tuple[Token, ...]  # up to the position
    query: Row  # (head_size,)
    met: tuple[Met, ...]
    mixed: Row  # the sum of the values, each times its weight


@dataclass(frozen=True)
class DotView(Truncation):
    """One query and one key: their dot product, number by number, and what softmax makes of it
    among the others.
    """

    layer: int
    head: int
    position: int  # of the query
    met: int  # the position of the key
    tokens: tuple[Token, ...]  # up to the position
    query: Row  # (head_size,)
    key: Row
    products: Row  # of the two, number by number
    dot: float  # their sum
    scaled: float  # that divided by √head_size
    weight: float  # the softmax of that over all keys that were met
    all_scaled: tuple[tuple[int, float, float], ...]  # (position, scaled, weight) of each of these


@dataclass(frozen=True)
class Neuron:
    """One number inside a feed-forward, at every token."""

    index: int
    activations: Row  # after the activation function, and the gate where there is one


@dataclass(frozen=True)
class NeuronsView(Truncation):
    """The neurons of a feed-forward that were most active on a text."""

    layer: int
    size: int  # neurons that there are
    tokens: tuple[Token, ...]
    neurons: tuple[Neuron, ...]  # by the largest |activation|


@dataclass(frozen=True)
class GradView(Truncation):
    """Which input tokens a choice depends on: the gradient of a logit or a difference of two."""

    tokens: tuple[Token, ...]
    token: Token
    versus: Token | None
    logit: float  # of the token, or how far it is above that of the other
    times: Row  # gradient · vector: what would be lost, to first order, if the vector went to zero
    norms: Row  # the L2 norm of the gradient


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
