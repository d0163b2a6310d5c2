"""What every tokenizer can do."""

from dataclasses import dataclass
from typing import Any, Protocol

from minillm_repl.safetext import safe_line, show_token


class Tokenizer(Protocol):
    """Turns text into token ids, and each id into the bytes it stands for."""

    lead: str = ""  # what is put before every text, and taken off again where a whole text is shown
    unknown_becomes: str = ""  # the token that stands for what the vocabulary lacks; without one it is skipped

    @property
    def size(self) -> int:
        """How many different ids there are."""

    def encode(self, text: str, *, start: bool = True, special: bool = False) -> list[int]:
        """Return the ids of `text`.

        With `start` it begins a text, and what this tokenizer puts before one (a start token, a space) is added. The
        names of special tokens in it are text like any other, unless `special`. What the vocabulary lacks is skipped,
        or becomes `unknown_becomes`.
        """

    def unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the vocabulary lacks, each once, in order."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token: possibly only a part of a character; none for a special token."""

    def special(self, token: int) -> str:
        """Return the name of a token that is not text (`<|im_end|>`); empty for one that is."""
        del token
        return ""

    @property
    def special_names(self) -> list[str]:
        """The names of all tokens that are not text."""
        return []

    def named(self, name: str) -> int | None:
        """Return the id of the special token with exactly this name, if there is one."""
        del name
        return None

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of what a chat template wrote: names of special tokens mean them, and no start is added."""
        return self.encode(text, start=False, special=True)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, none of which begins one."""
        return [self.encode(text, start=False) for text in texts]

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold for `tokenizer_from_json` to make this tokenizer again."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token as what is told of it names it."""

    id: int
    text: str  # of a token that is not text, its name: `<|im_end|>`
    bytes: tuple[int, ...]  # none if it is not text

    @classmethod
    def of(cls, tokenizer: Tokenizer, token: int) -> "Token":
        """Return what is known of a token."""
        piece = tokenizer.token_bytes(token)
        return cls(token, piece.decode("utf-8", "replace") or tokenizer.special(token), tuple(piece))

    @property
    def label(self) -> str:
        """The token made visible."""
        return show_token(bytes(self.bytes)) if self.bytes else safe_line(self.text)


def label(tokenizer: Tokenizer, token: int) -> str:
    """Return one token made visible: its text, or its name if it is a special one."""
    return Token.of(tokenizer, token).label


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of all tokens from the first; bytes that are no UTF-8 become `�`."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace").removeprefix(tokenizer.lead)
