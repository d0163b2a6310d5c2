"""Steering: a direction in the residual stream from one text to another (Turner et al., 2023)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.insight.views.changes import Averaged
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.views.inspected_text import InspectedText, check_layer

RANDOM = 32  # directions that a direction is compared with
_AT_ONCE = 2**21  # numbers of one activation at once
_MOST_AT_ONCE = RANDOM // 4  # directions: so progress is seen on a short text too


@dataclass(frozen=True)
class Side:
    """One of a direction's two texts, and how many of its last tokens stand for its meaning."""

    subject: InspectedText
    count: int

    @property
    def first(self) -> int:
        """The position of the first of these tokens."""
        return len(self.subject.ids) - self.count

    def averaged(self) -> Averaged:
        """Return what a user is told of it."""
        subject, first = self.subject, self.first
        return Averaged(subject.tokens[:first], subject.tokens[first:], subject.position_of(first))

    def mean(self, layer: int) -> Tensor:
        """Return the mean of the residual stream after a layer over these tokens: (width,)."""
        name = f"blocks.{layer}.residual"
        # (count, width)
        stream: Tensor = self.subject.run_with_cache(name, last_only=True)[1][name][
            self.first :
        ].float()
        return stream.mean(0)


def lead(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return what a text is read after, so that none of its own tokens is the first: a start token,
    and a line break.

    The first position is where attention goes that has nothing to do: models keep one large vector
    there, whatever the token. Empty where a vocabulary has neither.
    """
    names: dict[str, str] = getattr(tokenizer, "special_tokens_map", {})
    start = tokenizer.token_to_id(names.get("bos_token", ""))
    line = [] if tokenizer.find_unknown("\n") else tokenizer.encode("\n", add_special=False)
    return (*([] if start is None else [start]), *(line if len(line) == 1 else []))


def pair(to: InspectedText, away: InspectedText) -> tuple[Side, Side]:
    """Return which tokens of two texts are compared: those after what both begin with, as many of
    each, from the end.

    The last token of a word of several is the one that has seen the whole word. Position 0 is left
    out. Raises UserError for a text that has no other.
    """
    shortest = min(len(to.ids), len(away.ids))
    shared = next(
        (place for place in range(shortest) if to.ids[place] != away.ids[place]), shortest
    )
    count = max(shortest - max(shared, 1), 1)
    return _side(to, count), _side(away, count)


def whole(subject: InspectedText) -> Side:
    """Return all of a text but its position 0. Raises UserError for a text that has no other."""
    return _side(subject, max(len(subject.ids) - 1, 1))


def _side(subject: InspectedText, count: int) -> Side:
    if len(subject.ids) < 2:
        raise UserError(
            _(
                "{token} would be at position 0, where a model keeps the same large vector "
                "for any token. This vocabulary has no token to put before it. Give texts "
                "of two tokens or more",
                token=subject.tokens[0].label,
            )
        )
    return Side(subject, count)


def direction(to: Side, away: Side, layer: int) -> Tensor:
    """Return the unit vector (width,) from a text to another: their means' difference at a layer.

    Raises UserError if there is no such layer, or no difference.
    """
    check_layer(to.subject.config, layer)
    difference = to.mean(layer) - away.mean(layer)
    if not difference.any():
        raise UserError(
            _("the two texts are identical to the model: there is no direction between them")
        )
    return torch.nn.functional.normalize(difference, dim=0)


def steering(along: Tensor, layer: int, strength: float) -> Hook:
    """Return a tap that adds `strength` times a unit vector to the residual stream after a layer,
    at every position.

    With several vectors (n, 1, width) the pass goes on as a batch of so many from there. Strength 0
    changes no bit.
    """
    place = f"blocks.{layer}.residual"

    def tap(name: str, tensor: Tensor) -> Tensor:
        return tensor + strength * along.to(tensor) if name == place and strength else tensor

    return tap


def random_steering(
    subject: InspectedText,
    layer: int,
    strength: float,
    told: Callable[[float], None] = lambda _: None,
    seed: int = 0,
) -> Iterator[Hook]:
    """Yield taps that steer in `RANDOM` random directions altogether, evenly spread: what any
    direction would do.

    As many at once as memory allows for this text; `told` hears how much is done, 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(
        torch.randn(RANDOM, 1, subject.config.d_model, generator=generator), dim=-1
    )
    size = max(1, min(_MOST_AT_ONCE, _AT_ONCE // (len(subject.ids) * subject.config.d_model)))
    for start in range(0, RANDOM, size):
        told(start / RANDOM)
        yield steering(vectors[start : start + size], layer, strength)


def stream_norm(subject: InspectedText, layer: int) -> float:
    """Return the norm of the residual stream after a layer at the last position (L2)."""
    return float(
        subject.run_with_cache(f"blocks.{layer}.residual", last_only=True)[1][
            f"blocks.{layer}.residual"
        ][-1].norm()
    )


def word_ids(tokenizer: Tokenizer, texts: Sequence[str], plain: list[list[int]]) -> list[list[int]]:
    """Return the tokens of texts as words in a text, given those that they are as they stand.

    A tokenizer of words has the space before a word in the word's own token: so where all of them
    take no more tokens with a space, it is put there.
    """
    spaced = [tokenizer.encode(" " + text, add_special=False) for text in texts]
    return spaced if sum(map(len, spaced)) <= sum(map(len, plain)) else plain
