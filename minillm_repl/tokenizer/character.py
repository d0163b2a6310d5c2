"""One token per character, as in the study note: the vocabulary is the sorted set of the corpus's characters."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.tokenizer.base import Tokenizer


class CharacterTokenizer(Tokenizer):
    """Ids are places in the sorted vocabulary; text is normalised to NFC, in which a Hangul syllable is one character.

    Raises UserError for characters that are not single, not distinct or not text.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = tuple(characters)
        self._ids = {character: place for place, character in enumerate(self.characters)}
        if len(self._ids) != len(self.characters) or not self.characters:
            raise UserError("the vocabulary must list at least one character, and each only once")
        if any(len(character) != 1 or "\ud800" <= character <= "\udfff" for character in self.characters):
            raise UserError("the vocabulary must be made of single characters")

    @classmethod
    def from_corpus(cls, text: str) -> "CharacterTokenizer":
        """Make the vocabulary of a text: its characters in the order of their code points."""
        return cls(sorted(set(unicodedata.normalize("NFC", text))))

    @property
    def size(self) -> int:
        """How many characters the model knows."""
        return len(self.characters)

    def encode(self, text: str, *, start: bool = True, special: bool = False) -> list[int]:  # noqa: ARG002
        """Return one id per known character of the NFC form of `text`; unknown ones are skipped."""
        return [self._ids[character] for character in unicodedata.normalize("NFC", text) if character in self._ids]

    def unknown(self, text: str) -> list[str]:
        """Return the characters that the vocabulary lacks, each once, in order."""
        return [c for c in dict.fromkeys(unicodedata.normalize("NFC", text)) if c not in self._ids]

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of the character."""
        return self.characters[token].encode()

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "character", "characters": ...}`."""
        return {"type": "character", "normalization": "NFC", "characters": "".join(self.characters)}


class IdTokenizer(Tokenizer):
    """For weights that came without a vocabulary: tokens are written as their numbers, `12 7 30 `."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        """How many tokens the model has."""
        return self._size

    def encode(self, text: str, *, start: bool = True, special: bool = False) -> list[int]:  # noqa: ARG002
        """Return the numbers written in `text`; anything else is skipped."""
        return [int(word) for word in text.split() if self._known(word)]

    def unknown(self, text: str) -> list[str]:
        """Return the words that are not the number of a token."""
        return [word for word in dict.fromkeys(text.split()) if not self._known(word)]

    def _known(self, word: str) -> bool:
        return word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < self.size

    def token_bytes(self, token: int) -> bytes:
        """Return the number and a space."""
        return f"{token} ".encode()

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "ids", "size": ...}`."""
        return {"type": "ids", "size": self.size}
