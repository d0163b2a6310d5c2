"""Subword tokenizers (byte-level BPE, SentencePiece-like BPE, ...), run by the `tokenizers` library."""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tokenizers

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import UNKNOWN
from minillm_repl.untrusted.tried import largest_id

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # how SentencePiece writes a space


class SubwordTokenizer(Tokenizer):
    """What a tokenizer.json describes, given as its parsed JSON.

    `names` are the special tokens by their roles (`bos_token`, `eos_token`, `unk_token` ...); `size` is how many ids
    the model has, which may be more than there are tokens. Raises UserError if the library refuses the description.
    """

    def __init__(self, description: Mapping[str, Any], names: Mapping[str, str], size: int) -> None:
        self.names, self._size = dict(names), size
        self._json = json.dumps(description, ensure_ascii=False)  # a tenth of the memory of the parsed description
        last = largest_id(self._json)
        with _library():
            self._whole = _make(self._json)
            lone = _without_lead(description)
            # for text that does not begin one
            self._rest = self._whole if lone == description else _make(json.dumps(lone, ensure_ascii=False))
            # The special tokens of other roles (`<|im_end|>`) are control too, and are never text.
            added = self._whole.get_added_tokens_decoder()
            self._special = {token: entry.content for token, entry in added.items() if entry.special}
            plain = {token: entry.content.encode() for token, entry in added.items() if not entry.special}
            read = _reader(description, self._whole)
            vocabulary = self._whole.get_vocab(with_added_tokens=False)
            self._bytes = {token: read(token, name) for name, token in vocabulary.items()} | plain
            self.lead = " " if _strips_space(description) and self._rest is not self._whole else ""
            self.unknown_becomes = _unknown_token(description)
        last = max((last, *self._bytes, *self._special))
        if last >= size:
            raise UserError(_("its tokens have ids up to {last:,}, but the model has {size:,}", last=last, size=size))

    @property
    def size(self) -> int:
        """How many ids the model has."""
        return self._size

    def encode(self, text: str, *, start: bool = True, special: bool = False) -> list[int]:
        """Return the ids; with `start`, with the start token that the tokenizer's own configuration asks for."""
        return self._encode(text, start, special).ids

    def _encode(self, text: str, start: bool, special: bool) -> tokenizers.Encoding:
        library = self._whole if start else self._rest
        library.encode_special_tokens = not special
        with _library():
            return library.encode(_whole_characters(text), add_special_tokens=start)

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of what a chat template wrote: names of special tokens mean them, and no start is added."""
        self._whole.encode_special_tokens = False
        with _library():
            return self._whole.encode(_whole_characters(text), add_special_tokens=False).ids

    def unknown(self, text: str) -> list[str]:
        """Return the pieces of `text` that become the unknown token, each once, in order."""
        if not self.unknown_becomes:
            return []
        encoding = self._encode(text, False, False)
        lost = self._whole.token_to_id(self.unknown_becomes)
        offsets = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[first:last] for token, (first, last) in offsets if token == lost))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; none for a special token, or an id that stands for nothing."""
        return self._bytes.get(token, b"") if token not in self._special else b""

    def special(self, token: int) -> str:
        """Return the name of a special token, or `<unused 50300>` for an id that stands for nothing."""
        if token in self._special:
            return self._special[token]
        return "" if token in self._bytes else f"<unused {token}>"

    def named(self, name: str) -> int | None:
        """Return the id of the token with exactly this name, if there is one."""
        return self._whole.token_to_id(name)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, none of which begins one; the library uses all processors."""
        self._rest.encode_special_tokens = True
        with _library():
            found = self._rest.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]

    @property
    def special_names(self) -> list[str]:
        """The names of all special tokens."""
        return list(self._special.values())

    @property
    def description(self) -> dict[str, Any]:
        """What a tokenizer.json holds, parsed."""
        described: dict[str, Any] = json.loads(self._json)
        return described

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "subword", ...}` with the whole description."""
        return {"type": "subword", "size": self._size, "names": self.names, "description": self.description}


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[str],
    special: Sequence[str],
    *,
    start: str | None = None,
    add_prefix_space: bool = False,
) -> dict[str, Any]:
    """Return the description of GPT-2's tokenizer from its `vocab.json` and the lines of its `merges.txt`.

    `special` are its special tokens, where the vocabulary has them; `start` is the one put before every text.
    Raises UserError if they do not go together.
    """
    pairs = [line.partition(" ")[::2] for line in merges if line and not line.startswith("#version")]
    with _library():
        library = tokenizers.Tokenizer(tokenizers.models.BPE(dict(vocabulary), pairs))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([name for name in special if name in vocabulary])
    if start is not None and start in vocabulary:
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, vocabulary[start])]
        )
    return _described(library)


def trained_bpe(texts: Iterator[str], size: int, special: Sequence[str]) -> dict[str, Any]:
    """Return the description of a byte-level BPE of `size` tokens in all, learnt from texts.

    All 256 bytes and the special tokens are among them, so nothing is unknown to it.
    """
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with _library():
        library.train_from_iterator(texts, trainer)
    return _described(library)


def characters(known: Sequence[str], specials: Sequence[str] = ()) -> dict[str, Any]:
    """Return the description of a tokenizer of one token per character, for programs that know only this library."""
    unknown = UNKNOWN if UNKNOWN in specials else None
    every = {character: i for i, character in enumerate((*known, *specials))}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(every, [], unk_token=unknown))
    library.normalizer = tokenizers.normalizers.NFC()
    library.decoder = tokenizers.decoders.Fuse()
    library.add_special_tokens(list(specials))
    return _described(library)


def _described(library: tokenizers.Tokenizer) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(library.to_str())
    return description


@contextmanager
def _library() -> Iterator[None]:
    """Turn what the library raises into a UserError: plain Exceptions, and panics, which are not even that."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(_("the tokenizers library fails: {error:.200}", error=safe_line(str(error)))) from None


def _make(description: str) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_str(description)
    library.no_truncation()  # what is typed is read whole,
    library.no_padding()  # and nothing else
    return library


def _whole_characters(text: str) -> str:
    """Return the text with `?` for bytes that were no UTF-8 where they were typed, which the library cannot take."""
    return text.encode("utf-8", "replace").decode()


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder, which may be a sequence of sequences."""
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
        part.get("type") == "Metaspace" or (part.get("type") == "Strip" and part.get("content") == " ")
        for part in _parts(description.get("decoder"))
    )


def _unknown_token(description: Mapping[str, Any]) -> str:
    model = description.get("model")
    if not isinstance(model, dict) or model.get("byte_fallback"):
        return ""
    unknown, vocabulary = model.get("unk_token"), model.get("vocab")
    if isinstance(model.get("unk_id"), int) and isinstance(vocabulary, list):  # Unigram says it by its place
        unknown = vocabulary[model["unk_id"]][0]
    return unknown if isinstance(unknown, str) else ""


def _reader(description: Mapping[str, Any], library: tokenizers.Tokenizer) -> Callable[[int, str], bytes]:
    """Return what turns a token's id and written form into its bytes, by the kind of its decoder."""
    kinds = {part.get("type") for part in _parts(description.get("decoder"))}
    if "ByteLevel" in kinds:
        return lambda _, name: _from_letters(name)
    if kinds & {"ByteFallback", "Metaspace"} or _SPACE in json.dumps(description.get("decoder"), ensure_ascii=False):
        return lambda _, name: _from_sentencepiece(name)
    return lambda token, _: library.decode([token], skip_special_tokens=False).encode()


def _from_sentencepiece(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _from_letters(name: str) -> bytes:
    """Return the bytes that letters stand for in GPT-2's way; a name with other letters stands for itself."""
    try:
        return name.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return name.encode()


def _byte_letters() -> dict[int, int]:
    """Return which byte each letter of GPT-2's stands for: printable ones for themselves, others from U+0100 on.

    What would come out as a byte that it does not stand for becomes what no byte is.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {256 + place: byte for place, byte in enumerate(others)} | dict.fromkeys(others, 0x10FFFF)


_BYTES = _byte_letters()
