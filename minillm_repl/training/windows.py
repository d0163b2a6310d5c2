"""Windows of a row of tokens, as the model reads them."""

import math
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm_repl.tokenizer.base import Tokenizer

IGNORED = -100  # a target that does not count; torch's own usual number
_GOLDEN = 0.618033988749895
_ROWS = 64  # windows read from a mapped file at once: around each, the system may map a megabyte


@dataclass
class Part:
    """One row of tokens, and the windows of context + 1 tokens in it: inputs, and one place on,
    their targets.
    """

    ids: NDArray[np.unsignedinteger]  # (count,), of a mapped file or in memory
    learned: NDArray[np.bool_] | None  # (count,), which tokens count as targets; None: all
    context: int

    @property
    def windows(self) -> int:
        """How many windows there are: one begins at every token but the last `context`."""
        return max(0, len(self.ids) - self.context)

    def at(self, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the windows that begin at `starts` (b,): inputs (b, context) and targets, both
        int64.
        """
        places = starts[:, None] + np.arange(self.context + 1)
        ids = torch.from_numpy(_taken(self.ids, places).astype(np.int64))
        inputs, targets = ids[:, :-1], ids[:, 1:]
        if self.learned is not None:
            targets = torch.where(
                torch.from_numpy(_taken(self.learned, places[:, 1:])), targets, IGNORED
            )
        return inputs, targets

    def drawn(self, first: int, count: int, seed: int) -> NDArray[np.int64]:
        """Return where the windows begin that a run reads as number `first` and on, counted from
        its beginning.

        Each is read once before any is read again, and those of one batch lie far apart: they are a
        Weyl sequence, in steps of about the golden section of the row, from another place in each
        round.
        """
        stride = max(1, round(self.windows * _GOLDEN))
        while math.gcd(stride, self.windows) != 1:
            stride += 1
        starts = list[int]()
        for number in range(first, first + count):
            around, place = divmod(number, self.windows)
            if place == 0 or not starts:
                offset = int(np.random.default_rng((seed, around)).integers(self.windows))
            starts.append((offset + place * stride) % self.windows)
        return np.array(starts, dtype=np.int64)

    def even(self, most: int) -> NDArray[np.int64]:
        """Return where windows begin that lie evenly over the whole row and have about `most`
        tokens, or are all.
        """
        stride = -(-self.windows * self.context // most)
        return np.arange(0, self.windows, max(1, min(stride, self.windows)))

    def apart(self, most: int = 0) -> NDArray[np.int64]:
        """Return where windows begin that lie side by side: every token is a target once;
        thinned to `most` tokens.
        """
        starts = np.arange(0, self.windows, self.context)
        return starts[:: max(1, -(-len(starts) * self.context // most))] if most else starts

    @property
    def targets(self) -> int:
        """How many tokens count."""
        return len(self.ids) if self.learned is None else int(self.learned.sum())

    def characters(self, tokenizer: Tokenizer) -> int:
        """Return how many characters of text the tokens that count are; one that stands for the
        unknown is one.
        """
        lengths = np.array([_characters(tokenizer, token) for token in range(tokenizer.size)])
        total = 0
        for start in range(0, len(self.ids), 1 << 20):
            here = slice(start, start + (1 << 20))
            ids = self.ids[here] if self.learned is None else self.ids[here][self.learned[here]]
            total += int(lengths[ids].sum())
            for row in (self.ids, self.learned):
                _release(row)
        return total


def _taken(row: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    """Return the entries of a row at places (b, t)."""
    taken = np.empty(places.shape, row.dtype)
    for first in range(0, len(places), _ROWS):
        here = slice(first, first + _ROWS)
        taken[here] = row[places[here]]
        _release(row)
    return taken


def _release(row: NDArray[Any] | None) -> None:
    """Give back the pages of a mapped file: it may be larger than the memory, and stays in the
    system's cache.
    """
    mapped = getattr(row, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _characters(tokenizer: Tokenizer, token: int) -> int:
    piece = tokenizer.token_bytes(token)
    if not piece:
        return int(
            bool(tokenizer.unknown_becomes)
            and tokenizer.special(token) == tokenizer.unknown_becomes
        )
    # every byte but those that only continue a character
    return sum(byte & 0xC0 != 0x80 for byte in piece)
