"""What every tokenizer can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from minillm_repl.safetext import safe_line, show_token

Span = tuple[int, int]
"""A part of a text: from which character, and up to which one."""
Escapes = Mapping[int, str]
"""Which character (its code point) stands in a text for the first of a special token's name that
somebody typed."""


class Tokenizer(Protocol):
    """Turns text into token ids, and each id into the bytes it stands for."""

    prefix: str = (
        ""  # what is put before every text, and taken off again where a whole text is shown
    )
    # the token that stands for what the vocabulary lacks; without one it is skipped
    unk_token: str = ""

    @property
    def vocab_size(self) -> int:
        """How many different ids there are."""

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of `text`.

        With `start` it begins a text, and what this tokenizer puts before one (a start token, a
        space) is added. The names of special tokens in it are text like any other, unless
        `special`. What the vocabulary lacks is skipped, or becomes `unknown_becomes`.
        """

    def find_unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the vocabulary lacks, each once, in order."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token: maybe only part of a character; none for a special one."""

    def special_name(self, token: int) -> str:
        """Return the name of a token that is not text (`<|im_end|>`); empty for one that is."""
        del token
        return ""

    @property
    def special_names(self) -> list[str]:
        """The names of all tokens that are not text."""
        return []

    def token_to_id(self, name: str) -> int | None:
        """Return the id of the special token with exactly this name, if there is one."""
        del name
        return None

    @property
    def added_names(self) -> list[str]:
        """The names of all tokens that stand for themselves wherever a template writes them."""
        return self.special_names

    # `escapes` is only read.
    def encode_rendered(self, text: str, escapes: Escapes = {}) -> list[int]:  # noqa: B006
        """Return the ids of what a chat template wrote: names of special tokens mean them, and no
        start is added.

        Those that somebody typed are text: a character in `typed` stands for the first of each.
        """
        return self.encode(text.translate(escapes), add_special=False, parse_special=True)

    def encode_with_mask(
        self,
        text: str,
        spans: Sequence[Span],
        escapes: Escapes = {},  # noqa: B006 - it is only read
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of what a chat template wrote, and of each whether a part of it lies in
        one of the spans.
        """
        ids, mask = list[int](), list[bool]()
        for number, (start, end) in enumerate(
            pairwise([0, *(place for span in spans for place in span), len(text)])
        ):
            part_ids = self.encode_rendered(text[start:end], escapes)
            ids += part_ids
            mask += [number % 2 == 1] * len(part_ids)
        return ids, mask

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, none of which begins one."""
        return [self.encode(text, add_special=False) for text in texts]

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for `tokenizer_from_json` to make this again."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token as what is told of it names it."""

    id: int
    text: str  # of a token that is not text, its name: `<|im_end|>`
    bytes: tuple[int, ...]  # none if it is not text

    @classmethod
    def from_id(cls, tokenizer: Tokenizer, token: int) -> "Token":
        """Return what is known of a token."""
        data = tokenizer.token_bytes(token)
        return cls(
            token, data.decode("utf-8", "replace") or tokenizer.special_name(token), tuple(data)
        )

    @property
    def label(self) -> str:
        """The token made visible."""
        return show_token(bytes(self.bytes)) if self.bytes else safe_line(self.text)


def label(tokenizer: Tokenizer, token: int) -> str:
    """Return one token made visible: its text, or its name if it is a special one."""
    return Token.from_id(tokenizer, token).label


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of all tokens from the first; bytes that are no UTF-8 become `�`."""
    return (
        b"".join(map(tokenizer.token_bytes, ids))
        .decode("utf-8", "replace")
        .removeprefix(tokenizer.prefix)
    )
