"""Measures models on a file of questions or on a text. docs/evaluation.md describes it.

`items.py` reads the file, `questions.py` and `text.py` measure, `statistics.py` has the intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp
from typing import Literal

from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.generate import Decoder

Kind = Literal["choices", "answers", "text"]


class ItemError(UserError):
    """What is wrong with one item of a file; the others can still be measured."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question of a file."""

    line: int  # of the file, from 1
    prompt: str
    choices: tuple[str, ...] = ()  # none: the model writes the answer
    gold: int = 0  # the index of the right choice
    answer: str = ""  # the right text


@dataclass(frozen=True)
class BadLine:
    """A line of a file that could not be measured, and why."""

    line: int  # from 1
    why: str


@dataclass(frozen=True)
class Questions:
    """The questions of a file."""

    kind: Kind
    items: tuple[Item, ...]
    bad: tuple[BadLine, ...]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is measured: all that it is asked goes through its decoder and tokenizer."""

    name: str
    decoder: Decoder
    checkpoint: Checkpoint
    template: ChatTemplate | None  # None: prompts are texts to continue
    system: str = ""  # the system prompt before each question of a chat
    parse_special: bool = False  # names of special tokens in the file mean the tokens

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """What comes before a text: the start token, or what separates texts; maybe nothing."""
        tokenizer = self.checkpoint.tokenizer
        if tokenizer.start_ids:
            return tokenizer.start_ids
        names: dict[str, str] = getattr(tokenizer, "special_tokens_map", {})
        start = tokenizer.token_to_id(names.get("bos_token", ""))
        return self.checkpoint.eos_token_ids[:1] if start is None else (start,)

    def encode_start(self, text: str) -> list[int]:
        """Return the ids of the beginning of a text, without the start token."""
        tokenizer = self.checkpoint.tokenizer
        ids = tokenizer.encode(text, parse_special=self.parse_special)
        return ids[len(tokenizer.start_ids) :]


# -- what is found


@dataclass(frozen=True, kw_only=True)
class ChoiceResult:
    """What a model makes of a question with choices."""

    line: int
    gold: int
    logprobs: tuple[float, ...]  # of each choice: natural logarithm, the sum over its tokens
    greedy: tuple[bool, ...]  # whether each token of the choice is the likeliest
    sizes: tuple[int, ...]  # bytes of each choice
    lengths: tuple[int, ...]  # characters of each choice

    @property
    def picked(self) -> int:
        """The likeliest choice; the first of equals."""
        return _argmax(self.logprobs)

    @property
    def picked_per_byte(self) -> int:
        """The choice with the highest log-probability per byte (lm-eval's acc_bytes)."""
        return _argmax([each / n for each, n in zip(self.logprobs, self.sizes, strict=True)])

    @property
    def picked_per_character(self) -> int:
        """The choice with the highest log-probability per character (lm-eval's acc_norm)."""
        return _argmax([each / n for each, n in zip(self.logprobs, self.lengths, strict=True)])

    @property
    def is_right(self) -> bool:
        """Whether the likeliest choice is the right one."""
        return self.picked == self.gold

    @property
    def shares(self) -> tuple[float, ...]:
        """The probability of each choice, divided by the sum over all choices."""
        most = max(self.logprobs)
        weights = [exp(each - most) for each in self.logprobs]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def badness(self) -> float:
        """How wrong it is: the share of the likeliest wrong choice, less that of the right one."""
        shares = self.shares
        others = [share for index, share in enumerate(shares) if index != self.gold]
        return max(others) - shares[self.gold]


@dataclass(frozen=True, kw_only=True)
class AnswerResult:
    """What a model writes as the answer to a question."""

    line: int
    given: str
    is_right: bool
    prob: float | None  # of what it wrote; None where a server does not tell

    @property
    def badness(self) -> float:
        """How wrong it is: a wrong answer of which the model was sure is worst."""
        return (0.0 if self.is_right else 1.0) + (self.prob or 0.0) * (-1 if self.is_right else 1)


@dataclass(frozen=True)
class LineBits:
    """How unlikely a model finds a line of a text."""

    line: int  # from 1
    bits: float
    size: int  # bytes that were predicted


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """What a model makes of a text."""

    tokens: int  # that were predicted
    total_tokens: int  # of the text
    nats: float  # the sum over them
    size: int  # bytes of these tokens
    windows: int
    window: int  # tokens that a prediction sees at most
    stride: int  # tokens that a window predicts, after the first one
    start: str  # the name of the start token before the text; empty for none
    unknown: int  # characters of the text that the vocabulary lacks; they are left out
    lines: tuple[LineBits, ...]  # those that were predicted to their end


Result = ChoiceResult | AnswerResult


@dataclass(frozen=True)
class Measured:
    """An item, and what each model makes of it."""

    item: Item
    results: tuple[Result, ...]


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)  # the first of equals, as numpy's
