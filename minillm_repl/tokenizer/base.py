"""The interface of all tokenizers, and one token as a view shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from minillm_repl.safetext import safe_line, show_token

Span = tuple[int, int]
"""A part of a text: its first character, and the one after its last."""
Escapes = Mapping[int, str]
"""From a code point to a character. In a text, the first replaces the second at the start of a
special token's name that a user typed: such a name is text."""


class Tokenizer(Protocol):
    """Turns text into token ids, and each id into its bytes."""

    prefix: str = ""  # put before every text; `decode` removes it
    unk_token: str = ""  # for characters that the vocabulary lacks; without one they are skipped

    @property
    def vocab_size(self) -> int:
        """The number of ids."""

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of `text`.

        `add_special` adds what this tokenizer puts before a text: a start token, a space.
        `parse_special` makes names of special tokens mean the tokens; otherwise they are text.
        A character that the vocabulary lacks is skipped, or becomes `unk_token`.
        """

    def find_unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the vocabulary lacks, each once, in order."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token, maybe a part of a character; none for a special token."""

    def special_name(self, token: int) -> str:
        """Return the name of a special token (`<|im_end|>`); empty for a token that is text."""
        del token
        return ""

    @property
    def special_names(self) -> list[str]:
        """The names of all special tokens."""
        return []

    def token_to_id(self, name: str) -> int | None:
        """Return the id of the special token with exactly this name, or None."""
        del name
        return None

    @property
    def added_names(self) -> list[str]:
        """The names of all tokens that a chat template can write."""
        return self.special_names

    # `escapes` is only read.
    def encode_rendered(self, text: str, escapes: Escapes = {}) -> list[int]:  # noqa: B006
        """Return the ids of a rendered chat template, without a start token.

        Names of special tokens mean the tokens; names that a user typed are in `escapes`.
        """
        return self.encode(text.translate(escapes), add_special=False, parse_special=True)

    def encode_with_mask(
        self,
        text: str,
        spans: Sequence[Span],
        escapes: Escapes = {},  # noqa: B006 - it is only read
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of a rendered chat template, and a mask of the ids that touch a span.

        `spans` are in order and do not overlap.
        """
        ids, mask = list[int](), list[bool]()
        boundaries = [0, *(place for span in spans for place in span), len(text)]
        for number, (start, end) in enumerate(pairwise(boundaries)):
            part_ids = self.encode_rendered(text[start:end], escapes)
            ids += part_ids
            mask += [number % 2 == 1] * len(part_ids)  # every second part is a span
        return ids, mask

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, each without a start token."""
        return [self.encode(text, add_special=False) for text in texts]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of which `tokenizer_from_json` makes this tokenizer again."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token as views and `--json` show it."""

    id: int
    text: str  # a special token has its name here: `<|im_end|>`
    bytes: tuple[int, ...]  # empty for a special token

    @classmethod
    def from_id(cls, tokenizer: Tokenizer, token: int) -> "Token":
        """Return the token with this id."""
        data = tokenizer.token_bytes(token)
        text = data.decode("utf-8", "replace") or tokenizer.special_name(token)
        return cls(token, text, tuple(data))

    @property
    def label(self) -> str:
        """The token with its spaces and partial characters made visible."""
        return show_token(bytes(self.bytes)) if self.bytes else safe_line(self.text)


def label(tokenizer: Tokenizer, token: int) -> str:
    """Return one token made visible: its text, or the name of a special token."""
    return Token.from_id(tokenizer, token).label


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of all tokens of a text; bytes that are not UTF-8 become `�`."""
    data = b"".join(map(tokenizer.token_bytes, ids))
    return data.decode("utf-8", "replace").removeprefix(tokenizer.prefix)
