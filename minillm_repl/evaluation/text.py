"""Measures a model on a text, in windows over its tokens as lm-eval has them."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import log

from minillm_repl.errors import UserError
from minillm_repl.evaluation import LineBits, Subject, TextResult
from minillm_repl.language import _

_LN2 = log(2)


def windows(
    length: int, window: int, stride: int, start: int = 1
) -> Iterator[tuple[int, int, int]]:
    """Yield (first, since, end) over a row of `length` tokens: those from `first` on are read, and
    those from `since` to `end` predicted, each of them once.

    The first window predicts `window` tokens after the `start` ones; each later one `stride`
    tokens, or what is left, and sees `window` tokens before the last of them.
    """
    end = min(length, window + 1)
    if start < end:
        yield 0, start, end
    while end < length:
        since = end
        end = min(length, since + stride)
        yield max(0, end - window - 1), since, end


@dataclass
class TextMeasure:
    """What is found in a text so far; `run` goes on, and may be left at any window."""

    subject: Subject
    text: str
    window: int = 0  # 0: the context
    stride: int = 0  # 0: the window
    nats: list[float] = field(default_factory=list)  # of each token that was predicted
    n_windows: int = 0

    def __post_init__(self) -> None:
        self.start_ids = self.subject.start_ids
        self.ids = self.subject.encode_start(self.text)
        self.row = [*self.start_ids, *self.ids]
        context = self.subject.decoder.context_length
        self.window = min(self.window or context, context)
        self.stride = min(self.stride or self.window, self.window)
        self.first = max(1, len(self.start_ids))  # the first token of the row that is predicted
        if len(self.row) <= self.first:
            raise UserError(_("the text has no token to predict"))
        unknown = set(self.subject.checkpoint.tokenizer.find_unknown(self.text))
        self.unknown = sum(map(self.text.count, unknown))

    @property
    def total(self) -> int:
        """The number of tokens that there are to predict."""
        return len(self.row) - self.first

    def run(self, interrupted: Callable[[], bool], limit: int = 0) -> Iterator[int]:
        """Yield the number of tokens that are predicted, after each of `limit` windows or all.

        Raises UserError after Ctrl-C.
        """
        for start, since, end in windows(len(self.row), self.window, self.stride, self.first):
            if interrupted():
                raise UserError(_("stopped"))
            ids = self.row[start:end]
            scores = self.subject.decoder.score(ids, since - start, 0, interrupted)
            found = [-each.logprob for each in scores]
            self.nats += found
            self.n_windows += 1
            yield len(self.nats)
            if self.n_windows == limit:
                return

    def result(self) -> TextResult:
        """Return what was found."""
        tokenizer = self.subject.checkpoint.tokenizer
        predicted = self.row[self.first : self.first + len(self.nats)]
        names = (tokenizer.special_name(token) for token in self.start_ids)
        lines = _lines(self)
        return TextResult(
            tokens=len(self.nats),
            total_tokens=self.total,
            nats=sum(self.nats),
            size=sum(len(tokenizer.token_bytes(token)) for token in predicted) - self._prepended,
            windows=self.n_windows,
            window=self.window,
            stride=self.stride,
            start="".join(names),
            unknown=self.unknown,
            lines=lines,
        )

    @property
    def _prepended(self) -> int:
        """The bytes that the tokenizer put before the text, if they were predicted."""
        if self.first > len(self.start_ids):
            return 0  # they are in the first token, which is not predicted
        data = b"".join(map(self.subject.checkpoint.tokenizer.token_bytes, self.ids[:1]))
        return int(data.startswith(b" ") and not self.text.startswith(" "))


def _lines(measure: TextMeasure) -> tuple[LineBits, ...]:
    """Return the bits of each line; a token counts to the line in which it begins."""
    token_bytes = measure.subject.checkpoint.tokenizer.token_bytes
    pieces = [token_bytes(token) for token in measure.ids]
    data = b"".join(pieces)
    line_starts = [0, *(found.end() for found in re.finditer(b"\n", data))]
    token_starts = [0, *accumulate(map(len, pieces))]
    skipped = len(measure.ids) - measure.total  # the first token, where nothing is before it
    done = token_starts[skipped + len(measure.nats)]
    bits = defaultdict[int, float](float)
    for start, nats in zip(token_starts[skipped:], measure.nats, strict=False):
        bits[bisect_right(line_starts, start) - 1] += nats / _LN2
    first = token_starts[skipped] + measure._prepended
    found = list[LineBits]()
    for index, (start, end) in enumerate(pairwise([*line_starts, len(data)])):
        size = end - max(start, first)
        if size > 0 and end <= done:
            found.append(LineBits(index + 1, bits[index], size))
    return tuple(found)
