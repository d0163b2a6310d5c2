"""Tokenizers that need no library: a token per character, as in the study note, or bare ids."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Escapes, Tokenizer

UNK_TOKEN = "<unk>"  # noqa: S105
_SPECIAL_NAME = re.compile(r"<[^<>\s\x00-\x1f\x7f-\x9f]{1,98}>")


class CharacterTokenizer(Tokenizer):
    """An id is an index in the sorted vocabulary; the special tokens (`<end>`) come after it.

    Text is normalised to NFC, in which a Hangul syllable is one character. An unknown character
    becomes `<unk>` if that is a special token. Raises UserError for entries of the vocabulary
    that are not single distinct characters, and for invalid names of special tokens.
    """

    def __init__(self, characters: Iterable[str], specials: Iterable[str] = ()) -> None:
        self.characters, self.specials = tuple(characters), tuple(specials)
        self._ids = {character: place for place, character in enumerate(self.characters)}
        self._special_ids = {
            name: len(self.characters) + place for place, name in enumerate(self.specials)
        }
        self.unk_token = UNK_TOKEN if UNK_TOKEN in self._special_ids else ""
        self._unk_ids = [self._special_ids[UNK_TOKEN]] if self.unk_token else []
        names = sorted(self.specials, key=len, reverse=True)
        self._special_pattern = re.compile(
            f"({'|'.join(map(re.escape, names))})" if names else "(?!)"
        )
        if len(self._special_ids) != len(self.specials) or not all(
            map(_SPECIAL_NAME.fullmatch, self.specials)
        ):
            raise UserError(
                _("special tokens need distinct names such as <end>, of at most 100 characters")
            )
        if len(self._ids) != len(self.characters) or not self.characters:
            raise UserError(_("the vocabulary must list at least one character, without repeats"))
        # A lone surrogate is one character, but not text.
        if any(
            len(character) != 1 or "\ud800" <= character <= "\udfff"
            for character in self.characters
        ):
            raise UserError(_("the vocabulary must consist of single characters"))

    @classmethod
    def from_corpus(cls, text: str) -> "CharacterTokenizer":
        """Return the tokenizer of a text: its characters in the order of their code points."""
        return cls(sorted(set(unicodedata.normalize("NFC", text))))

    @property
    def vocab_size(self) -> int:
        """The number of characters and special tokens."""
        return len(self.characters) + len(self.specials)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return one id per character of the NFC form of `text`.

        An unknown character is skipped, or becomes `<unk>`.
        """
        del add_special  # nothing comes before a text
        if parse_special:
            return self.encode_rendered(text)
        known = (self._ids.get(character) for character in unicodedata.normalize("NFC", text))
        return [
            token for each in known for token in ([each] if each is not None else self._unk_ids)
        ]

    # `escapes` is only read.
    def encode_rendered(self, text: str, escapes: Escapes = {}) -> list[int]:  # noqa: B006
        """Return the ids of a rendered chat template; names that a user typed are in `escapes`."""
        parts = enumerate(self._special_pattern.split(text))  # every second part is a name
        ids = (
            [self._special_ids[part]] if number % 2 else self.encode(part.translate(escapes))
            for number, part in parts
        )
        return [token for part in ids for token in part]

    def find_unknown(self, text: str) -> list[str]:
        """Return the characters that the vocabulary lacks, each once, in order."""
        return [c for c in dict.fromkeys(unicodedata.normalize("NFC", text)) if c not in self._ids]

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of the character; none for a special token."""
        return self.characters[token].encode() if token < len(self.characters) else b""

    def special_name(self, token: int) -> str:
        """Return the name of a special token; empty for a character."""
        return self.specials[token - len(self.characters)] if token >= len(self.characters) else ""

    @property
    def special_names(self) -> list[str]:
        """The names of the special tokens."""
        return list(self.specials)

    def token_to_id(self, name: str) -> int | None:
        """Return the id of the special token with exactly this name, or None."""
        return self._special_ids.get(name)

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "character", "characters": ...}`, and `specials` if there are any."""
        data = {"type": "character", "normalization": "NFC", "characters": "".join(self.characters)}
        return {**data, "specials": list(self.specials)} if self.specials else data


class IdTokenizer(Tokenizer):
    """For weights without a vocabulary: a token is written as its number, `12 7 30 `."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        """The number of tokens of the model."""
        return self._vocab_size

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,  # noqa: ARG002
        parse_special: bool = False,  # noqa: ARG002
    ) -> list[int]:
        """Return the numbers in `text`; other words are skipped."""
        return [int(word) for word in text.split() if self._is_known(word)]

    def find_unknown(self, text: str) -> list[str]:
        """Return the words that are not the id of a token."""
        return [word for word in dict.fromkeys(text.split()) if not self._is_known(word)]

    def _is_known(self, word: str) -> bool:
        return (
            word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < self.vocab_size
        )

    def token_bytes(self, token: int) -> bytes:
        """Return the number and a space."""
        return f"{token} ".encode()

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "ids", "size": ...}`."""
        return {"type": "ids", "size": self.vocab_size}
