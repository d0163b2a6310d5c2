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
from minillm_repl.model.hooks import Hook, caching, compose, no_hook
from minillm_repl.tokenizer.base import Token, Tokenizer
from minillm_repl.tokenizer.truncation import TruncatedText

Names = Callable[[str], bool]


@dataclass(frozen=True)
class InspectedText:
    """A model and a text of at least one token that fits its context. `tap` changes what it thinks
    on the way.

    Of a longer text it is what the model sees: the first `kept` tokens, and those after a `gap`.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    ids: tuple[int, ...]
    hook: Hook = no_hook
    unseen_ids: tuple[int, ...] = ()  # tokens of the text that no longer fit
    prefix_length: int = 0
    # bytes that the tokenizer has put before the text; None leaves it to what it usually does
    prepended_bytes: int | None = None

    @property
    def config(self) -> AnyConfig:
        """The sizes of the model."""
        return self.model.config

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the text."""
        return tuple(Token.from_id(self.tokenizer, token) for token in self.ids)

    @property
    def window(self) -> TruncatedText:
        """What of the text is seen."""
        return TruncatedText(
            ids=self.ids,
            dropped_ids=self.unseen_ids,
            unseen=len(self.unseen_ids),
            kept=self.prefix_length,
        )

    @property
    def window_fields(self) -> dict[str, int]:
        """What a view says of that: how many tokens are not seen, and how many before them are."""
        return self.window.truncation_fields

    @property
    def all_ids(self) -> tuple[int, ...]:
        """The ids of the whole text, those that are not seen included."""
        return (*self.ids[: self.prefix_length], *self.unseen_ids, *self.ids[self.prefix_length :])

    def position_of(self, index: int) -> int:
        """Return where in the whole text one of `ids` stands."""
        return self.window.position_of(index)

    def index_of(self, position: int) -> int:
        """Return which of `ids` stands at a position of the whole text, from its end if negative.

        Raises UserError.
        """
        total = len(self.ids) + len(self.unseen_ids)
        absolute_position = position + total if position < 0 else position
        if not 0 <= absolute_position < total:
            raise UserError(
                _(
                    "no position {position}: positions run from 0 to {last}, or from -1 backwards",
                    position=position,
                    last=total - 1,
                )
            )
        if 0 <= absolute_position - self.prefix_length < len(self.unseen_ids):
            last = self.prefix_length + len(self.unseen_ids) - 1
            raise UserError(
                _(
                    "position {place} is outside the context: the model does not see "
                    "positions {first} to {last}",
                    place=absolute_position,
                    first=self.prefix_length,
                    last=last,
                )
            )
        return self.window.index_of(absolute_position)

    def up_to(self, index: int) -> "InspectedText":
        """Return the text up to one of `ids`, that included: nothing later can matter to it."""
        return replace(
            self,
            ids=self.ids[: index + 1],
            unseen_ids=self.unseen_ids if index >= self.prefix_length else (),
        )

    def with_hook(self, hook: Hook) -> "InspectedText":
        """Return the same with one more change on the way, after those there are."""
        return replace(self, hook=compose(self.hook, hook))

    @property
    def input_ids(self) -> Tensor:
        """The ids as a batch of one: (1, time)."""
        return torch.tensor([self.ids], device=next(self.model.parameters()).device)

    @torch.no_grad()
    def logits(self, *, last_only: bool = False) -> Tensor:
        """Return the logits after every token (time, vocab), or after the last (1, vocab).

        Raises UserError.
        """
        return check_finite(self.model(self.input_ids, hook=self.hook, last_only=last_only)[0])

    @torch.no_grad()
    def run_with_cache(
        self, *names: str, last_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, as `logits` does, and the activations whose names end so, without
        their batch dimension.

        Raises UserError if the logits are not finite.
        """
        cache: dict[str, Tensor] = {}
        hook = compose(self.hook, caching(cache, lambda name: name.endswith(names)))
        logits = check_finite(self.model(self.input_ids, hook=hook, last_only=last_only)[0])
        return logits, {name: tensor[0] for name, tensor in cache.items()}


def check_finite(logits: Tensor) -> Tensor:
    """Return logits that are numbers. Raises UserError if they are not."""
    if not logits.isfinite().all():
        raise UserError(
            _("the logits are not finite: a weight is not finite, or a result overflows float32")
        )
    return logits


def topk_ids(log_probabilities: Tensor, k: int) -> list[int]:
    """Return the ids of the `count` likeliest tokens of one distribution (vocab,), ties by id."""
    order: list[int] = log_probabilities.argsort(descending=True, stable=True)[:k].tolist()
    return order


def most_likely_of(subject: InspectedText, tokens: Sequence[int]) -> int:
    """Return which of some tokens is likeliest to come next; with one, no question."""
    if len(tokens) == 1:
        return tokens[0]
    logits = subject.logits(last_only=True)[0]
    return max(tokens, key=lambda token: float(logits[token]))


def rank(log_probabilities: Tensor, token: int) -> int:
    """Return a token's place among all, 1 being the likeliest; ties by id."""
    log_probability = log_probabilities[token]
    return (
        int(
            (log_probabilities > log_probability).sum()
            + (log_probabilities[:token] == log_probability).sum()
        )
        + 1
    )


def to_tuples(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as plain numbers."""
    return tuple(map(tuple, matrix.tolist()))


def check_layer(config: AnyConfig, layer: int, head: int | None = None) -> None:
    """Raise UserError if the model has no such layer, or the layer no such head."""
    if not 0 <= layer < config.n_layers:
        raise UserError(
            _(
                "no layer {layer}: layers are numbered from 0 to {last}",
                layer=layer,
                last=config.n_layers - 1,
            )
        )
    if head is not None and not 0 <= head < config.n_heads:
        raise UserError(
            _(
                "no head {head}: heads are numbered from 0 to {last}",
                head=head,
                last=config.n_heads - 1,
            )
        )
