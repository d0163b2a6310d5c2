"""A corpus as windows of token ids."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillm_repl.checkpoint.load import read_text
from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A text to train on, and where it came from."""

    text: str
    name: str  # as the user gave it
    sha256: str  # of the text with its line ends as newlines, UTF-8


def read_corpus(path: Path) -> Corpus:
    """Read a corpus. Raises UserError if it is not a regular file of UTF-8 text, or is empty."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{safe_line(str(path))} is empty: there is nothing to learn from")
    return Corpus(text, str(path), hashlib.sha256(text.encode()).hexdigest())


def windows(corpus: Corpus, tokenizer: Tokenizer, context: int) -> Tensor:
    """Return every stretch of context + 1 tokens, (count, context + 1): inputs, and one place on, their targets.

    The result is a view; the corpus is held once. Raises UserError if there is not even one.
    """
    ids = tokenizer.encode(corpus.text, start=False)
    if len(ids) < context + 1:
        raise UserError(
            f"{safe_line(corpus.name)} has {len(ids):,} tokens that the model knows; a context of {context} needs at"
            f" least {context + 1:,}: take a longer text, or a smaller `context=N`"
        )
    return torch.tensor(ids).unfold(0, context + 1, 1)
