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
from minillm_repl.model.taps import Tap, in_turn, recording, untapped
from minillm_repl.tokenizer.base import Token, Tokenizer

Names = Callable[[str], bool]


@dataclass(frozen=True)
class Subject:
    """A model and a text of at least one token that fits its context. `tap` changes what it thinks on the way."""

    model: LanguageModel
    tokenizer: Tokenizer
    ids: tuple[int, ...]
    tap: Tap = untapped
    unseen: int = 0  # tokens of the text before these, which no longer fit

    @property
    def config(self) -> AnyConfig:
        """The sizes of the model."""
        return self.model.config

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the text."""
        return tuple(Token.of(self.tokenizer, token) for token in self.ids)

    def upto(self, position: int) -> "Subject":
        """Return the text up to a position, that included: nothing later can matter to it."""
        return replace(self, ids=self.ids[: position + 1])

    def with_tap(self, tap: Tap) -> "Subject":
        """Return the same with one more change on the way, after those there are."""
        return replace(self, tap=in_turn(self.tap, tap))

    @property
    def input(self) -> Tensor:
        """The ids as a batch of one: (1, time)."""
        return torch.tensor([self.ids], device=next(self.model.parameters()).device)

    @torch.no_grad()
    def logits(self, *, last: bool = False) -> Tensor:
        """Return the logits after every token (time, vocab), or after the last (1, vocab). Raises UserError."""
        return checked(self.model(self.input, tap=self.tap, last=last)[0])

    @torch.no_grad()
    def record(self, *names: str, last: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, as `logits` does, and the activations whose names end so, without their batch dimension.

        Raises UserError if the logits are not finite.
        """
        found: dict[str, Tensor] = {}
        tap = in_turn(self.tap, recording(found, lambda name: name.endswith(names)))
        logits = checked(self.model(self.input, tap=tap, last=last)[0])
        return logits, {name: tensor[0] for name, tensor in found.items()}


def checked(logits: Tensor) -> Tensor:
    """Return logits that are numbers. Raises UserError if they are not."""
    if not logits.isfinite().all():
        raise UserError(_("the model's logits are not finite numbers: its weights are damaged"))
    return logits


def likeliest(log_probabilities: Tensor, count: int) -> list[int]:
    """Return the ids of the `count` likeliest tokens of one distribution (vocab,), ties by id."""
    order: list[int] = log_probabilities.argsort(descending=True, stable=True)[:count].tolist()
    return order


def likelier(subject: Subject, tokens: Sequence[int]) -> int:
    """Return which of some tokens is the likeliest to come next; with one there is nothing to ask."""
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
            _("there is no layer {layer}: they count from 0 to {last}", layer=layer, last=config.layers - 1)
        )
    if head is not None and not 0 <= head < config.heads:
        raise UserError(_("there is no head {head}: they count from 0 to {last}", head=head, last=config.heads - 1))


def check_position(ids: Sequence[object], position: int) -> int:
    """Return a position counted from 0; a negative one counts from the end. Raises UserError."""
    place = position + len(ids) if position < 0 else position
    if not 0 <= place < len(ids):
        raise UserError(
            _(
                "there is no position {position}: they count from 0 to {last}, or -1 from the end",
                position=position,
                last=len(ids) - 1,
            )
        )
    return place
