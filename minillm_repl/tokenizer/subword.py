"""Subword tokenizers (byte-level BPE, SentencePiece-like BPE, ...), run by the `tokenizers`
library.
"""

import copy
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import tokenizers

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.sandbox.tried import largest_id
from minillm_repl.tokenizer.added import Apart, finds_names, put_before, renamed, secret_names
from minillm_repl.tokenizer.base import Span, Tokenizer, Typed
from minillm_repl.tokenizer.library import library_errors, make, whole_characters

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # how SentencePiece writes a space


class SubwordTokenizer(Tokenizer):
    """What a tokenizer.json describes, given as its parsed JSON.

    `names` are the special tokens by their roles (`bos_token`, `eos_token`, `unk_token` ...);
    `size` is how many ids the model has, which may be more than there are tokens. Raises UserError
    if the library refuses the description.
    """

    def __init__(self, description: Mapping[str, Any], names: Mapping[str, str], size: int) -> None:
        self.names, self._size = dict(names), size
        # a tenth of the memory of the parsed description
        self._json = json.dumps(description, ensure_ascii=False)
        largest = largest_id(self._json)
        with library_errors():
            self._whole = make(self._json)
            lone = _without_lead(description)
            # for text that does not begin one
            self._rest = (
                self._whole if lone == description else make(json.dumps(lone, ensure_ascii=False))
            )
            # The special tokens of other roles (`<|im_end|>`) are control too, and are never text.
            self._added = self._whole.get_added_tokens_decoder()
            self._special = {
                token: entry.content for token, entry in self._added.items() if entry.special
            }
            plain = {
                token: entry.content.encode()
                for token, entry in self._added.items()
                if not entry.special
            }
            read = _reader(description, self._whole)
            vocabulary = self._whole.get_vocab(with_added_tokens=False)
            self._bytes = {token: read(token, name) for name, token in vocabulary.items()} | plain
            self.lead = " " if _strips_space(description) and self._rest is not self._whole else ""
            self.unknown_becomes = _unknown_token(description)
            single = {piece for piece in self._bytes.values() if len(piece) == 1}
            # with all bytes it can write everything
            self._skips = not self.unknown_becomes and len(single) < 256
            self._text, self._text_rest = self._without_names(description)
            self._start = put_before(self._whole, ["a", "0", "가", *islice(vocabulary, 100)])
        self._all_usable = max((largest, *self._bytes, *self._special)) < size
        self._usable(self._start)

    def _without_names(
        self, description: Mapping[str, Any]
    ) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Return what reads text in which no special token is meant, and what reads such text
        that begins none.
        """
        if not finds_names(description) or not self._special:
            return self._whole, self._rest
        hidden = renamed(description, secret_names(self._added))
        whole, rest = (
            json.dumps(each, ensure_ascii=False) for each in (hidden, _without_lead(hidden))
        )
        return make(whole), make(rest)

    @property
    def size(self) -> int:
        """How many ids the model has."""
        return self._size

    def encode(self, text: str, *, start: bool = True, special: bool = False) -> list[int]:
        """Return the ids; with `start`, after the start token that the tokenizer's own
        configuration asks for.

        What that puts after a text is left out: nothing that is encoded here is over. Raises
        UserError for a token that the model has no row for.
        """
        ids = self._encode(text, start, special).ids
        return self._usable([*self._start, *ids] if start else ids)

    def _encode(self, text: str, start: bool, special: bool) -> tokenizers.Encoding:
        libraries = (self._whole, self._rest) if special else (self._text, self._text_rest)
        library = libraries[0 if start else 1]
        library.encode_special_tokens = not special
        with library_errors():
            return library.encode(whole_characters(text), add_special_tokens=False)

    def encode_rendered(self, text: str, typed: Typed = {}) -> list[int]:  # noqa: B006 - it is only read
        """Return the ids of what a chat template wrote: names of special tokens mean them, and
        no start is added.
        """
        return self._rendered(text, typed)[0]

    def encode_marked(
        self, text: str, spans: Sequence[Span], typed: Typed = {}  # noqa: B006 - it is only read
    ) -> tuple[list[int], list[bool]]:  # fmt: skip
        """Return the ids of what a chat template wrote, and of each whether a part of it lies in
        one of the spans.
        """
        ids, encoding, places = self._rendered(
            text, typed, [place for span in spans for place in span]
        )
        starts, ends = ([offsets[which] for offsets in encoding.offsets] for which in (0, 1))
        marks = [False] * len(ids)
        for first, last in zip(places[::2], places[1::2], strict=True):
            begin, end = bisect_right(ends, first), bisect_left(starts, last)
            marks[begin:end] = [True] * (end - begin)
        return ids, marks

    def _rendered(
        self, text: str, typed: Typed, places: Sequence[int] = ()
    ) -> tuple[list[int], tokenizers.Encoding, Sequence[int]]:
        with library_errors():
            if typed:
                ids, encoding, places = self._apart.encode(text, typed, places)
            else:
                self._whole.encode_special_tokens = False
                encoding = self._whole.encode(whole_characters(text), add_special_tokens=False)
                ids = encoding.ids
        return self._usable(ids), encoding, places

    @cached_property
    def _apart(self) -> Apart:
        return Apart(self._json, self._added)

    def _usable(self, ids: list[int]) -> list[int]:
        """Return the ids.

        Raises UserError if the model has no row for one, as folders have it for their `<pad>`.
        """
        beyond = (
            None
            if self._all_usable
            else next((token for token in ids if token >= self._size), None)
        )
        if beyond is None:
            return ids
        raise UserError(
            _(
                "{token} (#{id}) is a token of the vocabulary, but the model has only "
                "{size:,} and no row for it",
                token=safe_line(self._whole.id_to_token(beyond) or ""),
                id=beyond,
                size=self._size,
            )
        )

    def unknown(self, text: str) -> list[str]:
        """Return the pieces of `text` that become the unknown token, or are skipped, each once,
        in order.
        """
        if not self.unknown_becomes:
            return self._skipped(text) if self._skips else []
        encoding = self._encode(text, False, False)
        lost = self._whole.token_to_id(self.unknown_becomes)
        offsets = zip(encoding.ids, encoding.offsets, strict=True)
        return list(
            dict.fromkeys(text[first:last] for token, (first, last) in offsets if token == lost)
        )

    def _skipped(self, text: str) -> list[str]:
        """Return the characters, but for blanks, of which no token is made, as they are when
        normalised.
        """
        with library_errors():
            normalizer = self._rest.normalizer
            normal = normalizer.normalize_str(whole_characters(text)) if normalizer else text
        known = (each for each in dict.fromkeys(normal) if not each.isspace())
        return [each for each in known if not self._encode(each, False, False).ids]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; none for a special token, or an id that stands for
        nothing.
        """
        return self._bytes.get(token, b"") if token not in self._special else b""

    def special(self, token: int) -> str:
        """Return the name of a special token, or `<unused 50300>` for an id that stands for
        nothing.
        """
        if token in self._special:
            return self._special[token]
        return "" if token in self._bytes else f"<unused {token}>"

    def named(self, name: str) -> int | None:
        """Return the id of the token with exactly this name, if there is one that the model has
        a row for.
        """
        token = self._whole.token_to_id(name)
        return token if token is not None and token < self._size else None

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, none of which begins one; the library uses all processors."""
        self._text_rest.encode_special_tokens = True
        with library_errors():
            found = self._text_rest.encode_batch_fast(texts, add_special_tokens=False)
        return [self._usable(encoding.ids) for encoding in found]

    @property
    def special_names(self) -> list[str]:
        """The names of all special tokens."""
        return list(self._special.values())

    @property
    def added_names(self) -> list[str]:
        """The names of special tokens, and of others that stand for themselves wherever they are
        written.
        """
        return [entry.content for entry in self._added.values() if entry.content.strip()]

    @property
    def description(self) -> dict[str, Any]:
        """What a tokenizer.json holds, parsed."""
        described: dict[str, Any] = json.loads(self._json)
        return described

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "subword", ...}` with the whole description."""
        return {
            "type": "subword",
            "size": self._size,
            "names": self.names,
            "description": self.description,
        }


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder, which may be a sequence of
    sequences.
    """
    if isinstance(part, dict):
        yield part
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in part.get(key, []):
                yield from _parts(inner)


def _without_lead(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the description with what puts a space before each text taken out."""
    bare = copy.deepcopy({key: description.get(key) for key in ("normalizer", "pre_tokenizer")})
    for part in (*_parts(bare["normalizer"]), *_parts(bare["pre_tokenizer"])):
        match part.get("type"):
            case "Prepend":
                part.update(prepend="")
            case "Metaspace":
                part.pop("add_prefix_space", None)  # the older spelling
                part.update(prepend_scheme="never")
            case "ByteLevel":
                part.update(add_prefix_space=False)
    return {**description, **bare}


def _strips_space(description: Mapping[str, Any]) -> bool:
    """Tell whether its decoder takes a space off the start of a text."""
    return any(
        part.get("type") == "Metaspace"
        or (part.get("type") == "Strip" and part.get("content") == " ")
        for part in _parts(description.get("decoder"))
    )


def _unknown_token(description: Mapping[str, Any]) -> str:
    model = description.get("model")
    if not isinstance(model, dict) or model.get("byte_fallback"):
        return ""
    unknown, vocabulary = model.get("unk_token"), model.get("vocab")
    # Unigram says it by its place
    if isinstance(model.get("unk_id"), int) and isinstance(vocabulary, list):
        unknown = vocabulary[model["unk_id"]][0]
    return unknown if isinstance(unknown, str) else ""


def _reader(
    description: Mapping[str, Any], library: tokenizers.Tokenizer
) -> Callable[[int, str], bytes]:
    """Return what turns a token's id and written form into its bytes, by the kind of its
    decoder.
    """
    kinds = {part.get("type") for part in _parts(description.get("decoder"))}
    if "ByteLevel" in kinds:
        return lambda _, name: _from_letters(name)
    if kinds & {"ByteFallback", "Metaspace"} or _SPACE in json.dumps(
        description.get("decoder"), ensure_ascii=False
    ):
        return lambda _, name: _from_sentencepiece(name)
    return lambda token, _: library.decode([token], skip_special_tokens=False).encode()


def _from_sentencepiece(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _from_letters(name: str) -> bytes:
    """Return the bytes that letters stand for in GPT-2's way; a name with other letters stands
    for itself.
    """
    try:
        return name.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return name.encode()


def _byte_letters() -> dict[int, int]:
    """Return which byte each letter of GPT-2's stands for: printable ones for themselves, others
    from U+0100 on.

    What would come out as a byte that it does not stand for becomes what no byte is.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [byte for byte in range(256) if byte not in printable]
    return {256 + place: byte for place, byte in enumerate(others)} | dict.fromkeys(
        others, 0x10FFFF
    )


_BYTES = _byte_letters()
