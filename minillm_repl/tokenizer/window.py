"""Which tokens of a text a model sees when the text is longer than its context; positions count
over the whole text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from minillm_repl.tokenizer.base import Tokenizer

_MAX_CONTEXT_STEP_ONE = 64  # tokens: up to here, reading the window again takes no time to speak of


def count_dropped(length: int, context: int) -> int:
    """Return how many of the first tokens of a text the model no longer sees.

    A small window moves by one token, as in the study note. Every move makes the model read the
    whole window again, so a large one moves by a quarter.
    """
    step = 1 if context <= _MAX_CONTEXT_STEP_ONE else context // 4
    return math.ceil(max(0, length - context) / step) * step


def find_bos_token_id(tokenizer: Tokenizer) -> int | None:
    """Return the special token that a tokenizer puts before every text, if it does."""
    first = tokenizer.encode("")[:1]
    return first[0] if first and tokenizer.special_name(first[0]) else None


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """What is told of a text of which the model may see only a part: the first `kept` tokens,
    and the last.
    """

    unseen: int = 0  # tokens that the model does not see: the text is longer than its context
    # tokens before these, which it does see: 1 where the text begins with a start token
    kept: int = 0

    def position_of(self, index: int) -> int:
        """Return where in the whole text one of the tokens stands that are seen."""
        return index if index < self.kept else index + self.unseen

    def index_of(self, position: int) -> int:
        """Return which of the tokens that are seen stands at a position of the whole text."""
        return position if position < self.kept else position - self.unseen


ViewT = TypeVar("ViewT", bound=Truncation)


def with_truncation(view: ViewT, truncation: Truncation) -> ViewT:
    """Return what is told of a text of which this part is seen."""
    return replace(view, unseen=truncation.unseen, kept=truncation.kept)


@dataclass(frozen=True, kw_only=True)
class TruncatedText(Truncation):
    """The tokens of a text that a model sees, and those that it does not."""

    ids: tuple[int, ...]
    dropped_ids: tuple[int, ...] = ()

    @property
    def truncation_fields(self) -> dict[str, int]:
        """What a view says of it."""
        return {"unseen": self.unseen, "kept": self.kept}


def truncate(ids: Sequence[int], context: int, bos_token_id: int | None = None) -> TruncatedText:
    """Return what a model sees of a text: the last tokens, and before them its start token if it
    begins with it.

    A model that begins each text with a start token has seen no text without one.
    """
    n_keep = int(len(ids) > context > 1 and ids[0] == bos_token_id)
    unseen = count_dropped(len(ids) - n_keep, context - n_keep)
    dropped_ids = tuple(ids[n_keep : n_keep + unseen])
    return TruncatedText(
        ids=(*ids[:n_keep], *ids[n_keep + unseen :]),
        dropped_ids=dropped_ids,
        unseen=unseen,
        kept=n_keep,
    )
