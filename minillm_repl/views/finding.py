"""Where a token, or a text of several, stands in a text that is looked at."""

import re
from bisect import bisect_right
from itertools import accumulate

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.lookup import find_token_ids
from minillm_repl.views.inspected_text import InspectedText


def find_predicted(inspected: InspectedText, token: str, number: int = 0) -> int:
    """Return the position of a token after the first, as it is typed: the last such, or of several
    the one with this number, from 1.

    A text of several tokens is meant at its first. Raises UserError if there is none.
    """
    positions = occurrences(inspected, token)
    if not positions or number > len(positions):
        raise UserError(
            _(
                "{token} stands only {n} times after the first token",
                token=safe_line(token),
                n=len(positions),
            )
            if positions
            else _("{token} is not in the text after its first token", token=safe_line(token))
        )
    return positions[number - 1]


def occurrences(inspected: InspectedText, typed: str) -> list[int]:
    """Return the positions after the first that have a token; of a text of several tokens, those at
    which it begins. A token is typed as in `find_token_ids`.
    """
    try:
        wanted = find_token_ids(inspected.tokenizer, typed)
    except UserError:
        return _positions_of_text(inspected, typed)
    return [at for at, token in enumerate(inspected.all_ids) if at and token in wanted]


def _positions_of_text(inspected: InspectedText, text: str) -> list[int]:
    tokens = [inspected.tokenizer.token_bytes(token) for token in inspected.all_ids]
    ends = list(accumulate(map(len, tokens)))  # bytes from the start of the text
    starts = re.finditer(re.escape(text.encode()), b"".join(tokens))
    return [at for found in starts if (at := bisect_right(ends, found.start()))]
