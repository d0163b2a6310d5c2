"""Texts and the vocabulary: tokens, surprisal, embeddings, two models on one text.

Positions count from 0.
"""

from dataclasses import dataclass

from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Likely, Row


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
    bytes_per_token: float | None  # without a space that the tokenizer has put before the text
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
class SurpriseView(Truncation):
    """How unexpected each token of a text was."""

    first: int  # the position of the first of them; the model saw those before too
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
    kl: float  # nats: KL(ours ‖ theirs) = Σ ours · ln(ours / theirs)
    kl_back: float  # nats: KL(theirs ‖ ours) = Σ theirs · ln(theirs / ours)
    ours: Likely
    theirs: Likely


@dataclass(frozen=True)
class CompareView(Truncation):
    """Two models on the same text. Pairs are for the open one and the other."""

    names: tuple[str, str]
    tokens: tuple[int, int]  # how many each reads; `unseen` and `kept` are of the open one
    top: tuple[tuple[Likely, ...], tuple[Likely, ...]]  # what could come next
    bits_per_byte: tuple[float | None, float | None]
    bytes: int  # of the text that these are over: the same ones for both
    why: str  # why there is no more to compare; empty if there is
    kl: tuple[float, float] | None  # at the last position: there, and back
    kl_mean: tuple[float, float] | None  # over all positions
    same_top: int | None  # positions at which both find the same token the likeliest
    # the positions at which they differ most, by the KL there, which is above 0
    differ: tuple[Difference, ...]


@dataclass(frozen=True)
class Neighbour:
    """A token whose vector points nearly the same way."""

    token: Token
    cosine: float


@dataclass(frozen=True)
class NearView:
    """Nearest neighbours of a token, or of a sum of several, in the two tables that a model has
    of its vocabulary.
    """

    # 1 or −1, and the token whose unit vector is added or taken away
    terms: tuple[tuple[int, Token], ...]
    # in the embedding, nearest first; the terms themselves are left out
    input: tuple[Neighbour, ...]
    output: tuple[Neighbour, ...] | None  # in the output head; None where that is the embedding


@dataclass(frozen=True)
class Point:
    """A token on the map."""

    token: Token
    x: float
    y: float
    in_text: bool


@dataclass(frozen=True)
class MapView:
    """The embedding's first two principal components."""

    explained: tuple[float, float]  # the share of the variance that lies along each
    vocabulary: int
    points: tuple[Point, ...]  # those of the text, then of the others as many as can be shown
