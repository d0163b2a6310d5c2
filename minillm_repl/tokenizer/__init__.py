"""The interface of all tokenizers, one token as a view shows it, and tokenizers without a library.

Without a library: one token per character, as in the study note, or bare ids.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line, show_token

THOUGHT_TAGS = ("<think>", "</think>")
"""Text, also where a model's files call them special: thoughts are told by them."""

FIRST_OWN_ID = 1 << 31
"""From here on, an id is not the model's: it stands for text whose ids a server does not tell."""

Span = tuple[int, int]
"""A part of a text: its first character, and the one after its last."""
Escapes = Mapping[int, str]
"""From a code point to a character. In a text, the first replaces the second at the start of a
special token's name that a user typed: such a name is text."""


class Tokenizer(Protocol):
    """Turns text into token ids, and each id into its bytes."""

    prefix: str = ""  # put before every text; `decode` removes it
    start_ids: tuple[int, ...] = ()  # put before every text by `encode(add_special=True)`
    unk_token: str = ""  # for characters that the vocabulary lacks; without one they are skipped

    @property
    def vocab_size(self) -> int:
        """The number of ids."""

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of `text`; a character that is not known is skipped or is `unk_token`.

        `add_special` adds what this tokenizer puts before a text: a start token, a space.
        `parse_special` makes names of special tokens mean the tokens; otherwise they are text.
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

    def encode_batch(self, texts: list[str], *, add_special: bool = False) -> list[list[int]]:
        """Return the ids of texts; with `add_special`, each as the beginning of a text."""
        return [self.encode(text, add_special=add_special) for text in texts]

    def with_start(self, name: str) -> "Tokenizer":
        """Return this tokenizer with a special token that it puts before every text.

        Training gives the token; a tokenizer that has its own, or no such token, stays as it is.
        """
        del name
        return self

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


# -- tokenizers that need no library

UNK_TOKEN = "<unk>"  # noqa: S105 - no password, but the token for unknown characters
BYTE_NAMES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_SPECIAL_NAME = re.compile(r"<[^<>\s\x00-\x1f\x7f-\x9f]{1,98}>")


class CharacterTokenizer(Tokenizer):
    """An id is an index in the sorted vocabulary; the special tokens (`<end>`) come after it.

    `start` is the special token that comes before every text, empty for none. With `has_bytes`, a
    token for each byte comes last.

    Text is normalised to NFC, in which a Hangul syllable is one character. An unknown character
    becomes the bytes of its UTF-8, or else `<unk>` if that is a special token. Raises UserError for
    entries of the vocabulary that are not single distinct characters, and for invalid names of
    special tokens.
    """

    def __init__(
        self,
        characters: Iterable[str],
        specials: Iterable[str] = (),
        start: str = "",
        *,
        has_bytes: bool = False,
    ) -> None:
        self.characters, self.specials, self.start = tuple(characters), tuple(specials), start
        self.has_bytes = has_bytes
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
        self._first_byte = len(self.characters) + len(self.specials)
        if (
            len(self._special_ids) != len(self.specials)
            or not all(map(_SPECIAL_NAME.fullmatch, self.specials))
            or (has_bytes and not BYTE_NAMES.isdisjoint(self.specials))
        ):
            raise UserError(
                _("special tokens need distinct names such as <end>, of at most 100 characters")
            )
        if len(self._ids) != len(self.characters) or not self.characters:
            raise UserError(_("the vocabulary must list at least one character, without repeats"))
        if start and start not in self._special_ids:
            raise UserError(
                _("the start token {name:.40} is no special token", name=safe_line(start))
            )
        self.start_ids = (self._special_ids[start],) if start else ()
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
        """The number of characters, special tokens and bytes."""
        return self._first_byte + (256 if self.has_bytes else 0)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return one id per character of the NFC form of `text`, after the start token if any.

        An unknown character becomes its bytes or `<unk>`, or is skipped.
        """
        ids = list(self.start_ids) if add_special else []
        if parse_special:
            return ids + self.encode_rendered(text)
        for character in unicodedata.normalize("NFC", text):
            known = self._ids.get(character)
            ids += self.unknown_ids(character) if known is None else [known]
        return ids

    def unknown_ids(self, character: str) -> list[int]:
        """Return the ids of a character that is not in the vocabulary."""
        if self.has_bytes:
            # A lone surrogate has no bytes.
            return [self._first_byte + byte for byte in character.encode(errors="ignore")]
        return self._unk_ids

    # `escapes` is only read.
    def encode_rendered(self, text: str, escapes: Escapes = {}) -> list[int]:  # noqa: B006
        """Return the ids of a rendered chat template; names that a user typed are in `escapes`."""
        parts = enumerate(self._special_pattern.split(text))  # every second part is a name
        ids = (
            [self._special_ids[part]]
            if number % 2
            else self.encode(part.translate(escapes), add_special=False)
            for number, part in parts
        )
        return [token for part in ids for token in part]

    def find_unknown(self, text: str) -> list[str]:
        """Return the characters that no token stands for, each once, in order."""
        characters = dict.fromkeys(unicodedata.normalize("NFC", text))
        if self.has_bytes:
            return [c for c in characters if "\ud800" <= c <= "\udfff"]
        return [c for c in characters if c not in self._ids]

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of the character, or one byte; none for a special token."""
        if token < len(self.characters):
            return self.characters[token].encode()
        if token >= self._first_byte:
            return bytes([token - self._first_byte])
        name = self.specials[token - len(self.characters)]
        return name.encode() if name in THOUGHT_TAGS else b""

    def special_name(self, token: int) -> str:
        """Return the name of a special token; empty for a character or a byte."""
        if not len(self.characters) <= token < self._first_byte:
            return ""
        name = self.specials[token - len(self.characters)]
        return "" if name in THOUGHT_TAGS else name

    @property
    def special_names(self) -> list[str]:
        """The names of the special tokens."""
        return list(self.specials)

    def token_to_id(self, name: str) -> int | None:
        """Return the id of the special token with exactly this name, or None."""
        return self._special_ids.get(name)

    def with_start(self, name: str) -> "CharacterTokenizer":
        """Return this tokenizer with a start token, unless it has one, or no such token."""
        if self.start or name not in self._special_ids:
            return self
        return CharacterTokenizer(self.characters, self.specials, name, has_bytes=self.has_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "character", "characters": ...}`, with `specials`, `start` and `bytes`
        if it has any.
        """
        data = {"type": "character", "normalization": "NFC", "characters": "".join(self.characters)}
        more = {"specials": list(self.specials), "start": self.start, "bytes": self.has_bytes}
        return {**data, **{name: value for name, value in more.items() if value}}
