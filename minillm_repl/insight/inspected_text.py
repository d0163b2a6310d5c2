"""What is looked at: a model, a text, and one pass of the one over the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.hooks import Tap, in_turn, recording, untapped
from minillm_repl.tokenizer.base import Token, Tokenizer
from minillm_repl.tokenizer.window import Window

Names = Callable[[str], bool]


@dataclass(frozen=True)
class Subject:
    """A model and a text of at least one token that fits its context. `tap` changes what it thinks
    on the way.

    Of a longer text it is what the model sees: the first `kept` tokens, and those after a `gap`.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    ids: tuple[int, ...]
    tap: Tap = untapped
    gap: tuple[int, ...] = ()  # tokens of the text that no longer fit
    kept: int = 0
    # bytes that the tokenizer has put before the text; None leaves it to what it usually does
    lead: int | None = None

    @property
    def config(self) -> AnyConfig:
        """The sizes of the model."""
        return self.model.config

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the text."""
        return tuple(Token.of(self.tokenizer, token) for token in self.ids)

    @property
    def seen(self) -> Window:
        """What of the text is seen."""
        return Window(ids=self.ids, gap=self.gap, unseen=len(self.gap), kept=self.kept)

    @property
    def where(self) -> dict[str, int]:
        """What a view says of that: how many tokens are not seen, and how many before them are."""
        return self.seen.where

    @property
    def whole(self) -> tuple[int, ...]:
        """The ids of the whole text, those that are not seen included."""
        return (*self.ids[: self.kept], *self.gap, *self.ids[self.kept :])

    def position(self, index: int) -> int:
        """Return where in the whole text one of `ids` stands."""
        return self.seen.position_of(index)

    def index(self, position: int) -> int:
        """Return which of `ids` stands at a position of the whole text, from its end if negative.

        Raises UserError.
        """
        total = len(self.ids) + len(self.gap)
        place = position + total if position < 0 else position
        if not 0 <= place < total:
            raise UserError(
                _(
                    "there is no position {position}: they count from 0 to {last}, or -1 "
                    "from the end",
                    position=position,
                    last=total - 1,
                )
            )
        if 0 <= place - self.kept < len(self.gap):
            last = self.kept + len(self.gap) - 1
            raise UserError(
                _(
                    "the model does not see position {place}: positions {first} to {last} "
                    "are outside its context",
                    place=place,
                    first=self.kept,
                    last=last,
                )
            )
        return self.seen.index_of(place)

    def upto(self, index: int) -> "Subject":
        """Return the text up to one of `ids`, that included: nothing later can matter to it."""
        return replace(self, ids=self.ids[: index + 1], gap=self.gap if index >= self.kept else ())

    def with_tap(self, tap: Tap) -> "Subject":
        """Return the same with one more change on the way, after those there are."""
        return replace(self, tap=in_turn(self.tap, tap))

    @property
    def input(self) -> Tensor:
        """The ids as a batch of one: (1, time)."""
        return torch.tensor([self.ids], device=next(self.model.parameters()).device)

    @torch.no_grad()
    def logits(self, *, last: bool = False) -> Tensor:
        """Return the logits after every token (time, vocab), or after the last (1, vocab).

        Raises UserError.
        """
        return checked(self.model(self.input, tap=self.tap, last=last)[0])

    @torch.no_grad()
    def record(self, *names: str, last: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, as `logits` does, and the activations whose names end so, without
        their batch dimension.

        Raises UserError if the logits are not finite.
        """
        found: dict[str, Tensor] = {}
        tap = in_turn(self.tap, recording(found, lambda name: name.endswith(names)))
        logits = checked(self.model(self.input, tap=tap, last=last)[0])
        return logits, {name: tensor[0] for name, tensor in found.items()}


def checked(logits: Tensor) -> Tensor:
    """Return logits that are numbers. Raises UserError if they are not."""
    if not logits.isfinite().all():
        raise UserError(
            _(
                "the logits are not finite numbers: a weight is not one, or a result is too "
                "large for float32"
            )
        )
    return logits


def likeliest(log_probabilities: Tensor, count: int) -> list[int]:
    """Return the ids of the `count` likeliest tokens of one distribution (vocab,), ties by id."""
    order: list[int] = log_probabilities.argsort(descending=True, stable=True)[:count].tolist()
    return order


def likelier(subject: Subject, tokens: Sequence[int]) -> int:
    """Return which of some tokens is the likeliest to come next; with one there is nothing to
    ask.
    """
    if len(tokens) == 1:
        return tokens[0]
    logits = subject.logits(last=True)[0]
    return max(tokens, key=lambda token: float(logits[token]))


def rank(log_probabilities: Tensor, token: int) -> int:
    """Return a token's place among all, 1 being the likeliest; ties by id."""
    mine = log_probabilities[token]
    return int((log_probabilities > mine).sum() + (log_probabilities[:token] == mine).sum()) + 1


def rows(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as plain numbers."""
    return tuple(map(tuple, matrix.tolist()))


def check_layer(config: AnyConfig, layer: int, head: int | None = None) -> None:
    """Raise UserError if the model has no such layer, or the layer no such head."""
    if not 0 <= layer < config.layers:
        raise UserError(
            _(
                "there is no layer {layer}: they count from 0 to {last}",
                layer=layer,
                last=config.layers - 1,
            )
        )
    if head is not None and not 0 <= head < config.heads:
        raise UserError(
            _(
                "there is no head {head}: they count from 0 to {last}",
                head=head,
                last=config.heads - 1,
            )
        )
