"""The tokens of a text that a model sees when the text is longer than the context.

Positions count over the whole text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from minillm_repl.tokenizer import Tokenizer

_MAX_CONTEXT_STEP_ONE = 64  # tokens; a prefill of so few takes no noticeable time


def count_dropped(length: int, context: int) -> int:
    """Return how many of the first tokens of a text the model no longer sees.

    A window of at most 64 tokens moves by one token, as in the study note. A larger one moves by
    a quarter of its length, because each move costs a prefill of the whole window.
    """
    step = 1 if context <= _MAX_CONTEXT_STEP_ONE else context // 4
    return math.ceil(max(0, length - context) / step) * step


def find_bos_token_id(tokenizer: Tokenizer) -> int | None:
    """Return the special token that a tokenizer puts before every text, or None."""
    first = tokenizer.start_ids[:1]
    return first[0] if first and tokenizer.special_name(first[0]) else None


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """The part of a text that a model sees: the first `kept` tokens, and the last ones."""

    unseen: int = 0  # tokens between the two parts; the model does not see them
    kept: int = 0  # tokens before the gap: 1 for a start token, else 0

    def position_of(self, index: int) -> int:
        """Return the position in the whole text of the seen token with this index."""
        return index if index < self.kept else index + self.unseen

    def index_of(self, position: int) -> int:
        """Return the index, among the seen tokens, of a position of the whole text."""
        return position if position < self.kept else position - self.unseen


ViewT = TypeVar("ViewT", bound=Truncation)


def with_truncation(view: ViewT, truncation: Truncation) -> ViewT:
    """Return a view with the positions of a truncated text."""
    return replace(view, unseen=truncation.unseen, kept=truncation.kept)


@dataclass(frozen=True, kw_only=True)
class TruncatedText(Truncation):
    """The tokens of a text that a model sees, and those that it does not."""

    ids: tuple[int, ...]
    dropped_ids: tuple[int, ...] = ()

    @property
    def truncation_fields(self) -> dict[str, int]:
        """The keyword arguments of a view that is a `Truncation` too."""
        return {"unseen": self.unseen, "kept": self.kept}


def truncate(ids: Sequence[int], context: int, bos_token_id: int | None = None) -> TruncatedText:
    """Return the last `context` tokens of a text, or fewer.

    A text that begins with the start token keeps it. A model that was trained with a start token
    has seen no text without one.
    """
    n_keep = int(len(ids) > context > 1 and ids[0] == bos_token_id)
    unseen = count_dropped(len(ids) - n_keep, context - n_keep)
    return TruncatedText(
        ids=(*ids[:n_keep], *ids[n_keep + unseen :]),
        dropped_ids=tuple(ids[n_keep : n_keep + unseen]),
        unseen=unseen,
        kept=n_keep,
    )
