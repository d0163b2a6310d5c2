"""Subword tokenizers (byte-level BPE, SentencePiece-like BPE, ...), run by `tokenizers`."""

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
from minillm_repl.sandbox.tried import largest_token_id
from minillm_repl.tokenizer.added import (
    EscapeEncoder,
    find_prefix_ids,
    matches_special_names,
    random_names,
    rename_tokens,
)
from minillm_repl.tokenizer.base import Escapes, Span, Tokenizer
from minillm_repl.tokenizer.library import library_errors, make_tokenizer, replace_surrogates

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # how SentencePiece writes a space


class SubwordTokenizer(Tokenizer):
    """What a tokenizer.json describes, given as its parsed JSON.

    `names` are the special tokens by their roles (`bos_token`, `eos_token`, `unk_token` ...);
    `size` is how many ids the model has, which may be more than there are tokens. Raises UserError
    if the library refuses the description.
    """

    def __init__(
        self, description: Mapping[str, Any], special_tokens_map: Mapping[str, str], vocab_size: int
    ) -> None:
        self.special_tokens_map, self._vocab_size = dict(special_tokens_map), vocab_size
        # a tenth of the memory of the parsed description
        self._json = json.dumps(description, ensure_ascii=False)
        largest = largest_token_id(self._json)
        with library_errors():
            self._tokenizer = make_tokenizer(self._json)
            without_prefix = _without_prefix_space(description)
            # for text that does not begin one
            self._tokenizer_without_prefix = (
                self._tokenizer
                if without_prefix == description
                else make_tokenizer(json.dumps(without_prefix, ensure_ascii=False))
            )
            # The special tokens of other roles (`<|im_end|>`) are control too, and are never text.
            self._added_tokens = self._tokenizer.get_added_tokens_decoder()
            self._special_tokens = {
                token: entry.content for token, entry in self._added_tokens.items() if entry.special
            }
            plain = {
                token: entry.content.encode()
                for token, entry in self._added_tokens.items()
                if not entry.special
            }
            decode_name = _make_name_decoder(description, self._tokenizer)
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
            self._token_bytes = {
                token: decode_name(token, name) for name, token in vocabulary.items()
            } | plain
            self.prefix = (
                " "
                if _strips_space(description)
                and self._tokenizer_without_prefix is not self._tokenizer
                else ""
            )
            self.unk_token = _find_unk_token(description)
            single_bytes = {piece for piece in self._token_bytes.values() if len(piece) == 1}
            # with all bytes it can write everything
            self._may_skip = not self.unk_token and len(single_bytes) < 256
            self._plain_tokenizer, self._plain_tokenizer_without_prefix = (
                self._make_plain_tokenizers(description)
            )
            self._prefix_ids = find_prefix_ids(
                self._tokenizer, ["a", "0", "가", *islice(vocabulary, 100)]
            )
        self._all_in_range = max((largest, *self._token_bytes, *self._special_tokens)) < vocab_size
        self._check_ids(self._prefix_ids)

    def _make_plain_tokenizers(
        self, description: Mapping[str, Any]
    ) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Return what reads text in which no special token is meant, and what reads such text
        that begins none.
        """
        if not matches_special_names(description) or not self._special_tokens:
            return self._tokenizer, self._tokenizer_without_prefix
        hidden = rename_tokens(description, random_names(self._added_tokens))
        whole, rest = (
            json.dumps(each, ensure_ascii=False) for each in (hidden, _without_prefix_space(hidden))
        )
        return make_tokenizer(whole), make_tokenizer(rest)

    @property
    def vocab_size(self) -> int:
        """How many ids the model has."""
        return self._vocab_size

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids; with `start`, after the start token that the tokenizer's own
        configuration asks for.

        What that puts after a text is left out: nothing that is encoded here is over. Raises
        UserError for a token that the model has no row for.
        """
        ids = self._encode(text, add_special, parse_special).ids
        return self._check_ids([*self._prefix_ids, *ids] if add_special else ids)

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> tokenizers.Encoding:
        libraries = (
            (self._tokenizer, self._tokenizer_without_prefix)
            if parse_special
            else (self._plain_tokenizer, self._plain_tokenizer_without_prefix)
        )
        library = libraries[0 if add_special else 1]
        library.encode_special_tokens = not parse_special
        with library_errors():
            return library.encode(replace_surrogates(text), add_special_tokens=False)

    # `escapes` is only read.
    def encode_rendered(self, text: str, escapes: Escapes = {}) -> list[int]:  # noqa: B006
        """Return the ids of what a chat template wrote: names of special tokens mean them, and
        no start is added.
        """
        return self._encode_rendered(text, escapes)[0]

    def encode_with_mask(
        # `escapes` is only read.
        self, text: str, spans: Sequence[Span], escapes: Escapes = {}  # noqa: B006
    ) -> tuple[list[int], list[bool]]:  # fmt: skip
        """Return the ids of what a chat template wrote, and of each whether a part of it lies in
        one of the spans.
        """
        ids, encoding, boundaries = self._encode_rendered(
            text, escapes, [place for span in spans for place in span]
        )
        starts, ends = ([offsets[which] for offsets in encoding.offsets] for which in (0, 1))
        mask = [False] * len(ids)
        for first, last in zip(boundaries[::2], boundaries[1::2], strict=True):
            begin, end = bisect_right(ends, first), bisect_left(starts, last)
            mask[begin:end] = [True] * (end - begin)
        return ids, mask

    def _encode_rendered(
        self, text: str, escapes: Escapes, boundaries: Sequence[int] = ()
    ) -> tuple[list[int], tokenizers.Encoding, Sequence[int]]:
        with library_errors():
            if escapes:
                ids, encoding, boundaries = self._escape_encoder.encode(text, escapes, boundaries)
            else:
                self._tokenizer.encode_special_tokens = False
                encoding = self._tokenizer.encode(
                    replace_surrogates(text), add_special_tokens=False
                )
                ids = encoding.ids
        return self._check_ids(ids), encoding, boundaries

    @cached_property
    def _escape_encoder(self) -> EscapeEncoder:
        return EscapeEncoder(self._json, self._added_tokens)

    def _check_ids(self, ids: list[int]) -> list[int]:
        """Return the ids.

        Raises UserError if the model has no row for one, as folders have it for their `<pad>`.
        """
        out_of_range = (
            None
            if self._all_in_range
            else next((token for token in ids if token >= self._vocab_size), None)
        )
        if out_of_range is None:
            return ids
        raise UserError(
            _(
                "{token} (#{id}) is in the vocabulary, but the model has only {size:,} "
                "tokens and no embedding for this one",
                token=safe_line(self._tokenizer.id_to_token(out_of_range) or ""),
                id=out_of_range,
                size=self._vocab_size,
            )
        )

    def find_unknown(self, text: str) -> list[str]:
        """Return the pieces of `text` that become unknown or are skipped, each once, in order."""
        if not self.unk_token:
            return self._skipped_characters(text) if self._may_skip else []
        encoding = self._encode(text, False, False)
        unk_id = self._tokenizer.token_to_id(self.unk_token)
        offsets = zip(encoding.ids, encoding.offsets, strict=True)
        return list(
            dict.fromkeys(text[first:last] for token, (first, last) in offsets if token == unk_id)
        )

    def _skipped_characters(self, text: str) -> list[str]:
        """Return the characters, blanks apart, of which no token is made, as normalised."""
        with library_errors():
            normalizer = self._tokenizer_without_prefix.normalizer
            normal = normalizer.normalize_str(replace_surrogates(text)) if normalizer else text
        known = (each for each in dict.fromkeys(normal) if not each.isspace())
        return [each for each in known if not self._encode(each, False, False).ids]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; none for a special one or an id without meaning."""
        return self._token_bytes.get(token, b"") if token not in self._special_tokens else b""

    def special_name(self, token: int) -> str:
        """Return the name of a special token, `<unused 50300>` for an id without meaning."""
        if token in self._special_tokens:
            return self._special_tokens[token]
        return "" if token in self._token_bytes else f"<unused {token}>"

    def token_to_id(self, name: str) -> int | None:
        """Return the id of the token with exactly this name, if there is one that the model has
        a row for.
        """
        token = self._tokenizer.token_to_id(name)
        return token if token is not None and token < self._vocab_size else None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, none of which begins one; the library uses all processors."""
        self._plain_tokenizer_without_prefix.encode_special_tokens = True
        with library_errors():
            found = self._plain_tokenizer_without_prefix.encode_batch_fast(
                texts, add_special_tokens=False
            )
        return [self._check_ids(encoding.ids) for encoding in found]

    @property
    def special_names(self) -> list[str]:
        """The names of all special tokens."""
        return list(self._special_tokens.values())

    @property
    def added_names(self) -> list[str]:
        """The names of special tokens, and of others that stand for themselves wherever written."""
        return [entry.content for entry in self._added_tokens.values() if entry.content.strip()]

    @property
    def description(self) -> dict[str, Any]:
        """What a tokenizer.json holds, parsed."""
        described: dict[str, Any] = json.loads(self._json)
        return described

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "subword", ...}` with the whole description."""
        return {
            "type": "subword",
            "size": self._vocab_size,
            "names": self.special_tokens_map,
            "description": self.description,
        }


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder, maybe a sequence of sequences."""
    if isinstance(step, dict):
        yield step
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in step.get(key, []):
                yield from _steps(inner)


def _without_prefix_space(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the description with what puts a space before each text taken out."""
    bare = copy.deepcopy({key: description.get(key) for key in ("normalizer", "pre_tokenizer")})
    for part in (*_steps(bare["normalizer"]), *_steps(bare["pre_tokenizer"])):
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
        for part in _steps(description.get("decoder"))
    )


def _find_unk_token(description: Mapping[str, Any]) -> str:
    model = description.get("model")
    if not isinstance(model, dict) or model.get("byte_fallback"):
        return ""
    unknown, vocabulary = model.get("unk_token"), model.get("vocab")
    # Unigram says it by its place
    if isinstance(model.get("unk_id"), int) and isinstance(vocabulary, list):
        unknown = vocabulary[model["unk_id"]][0]
    return unknown if isinstance(unknown, str) else ""


def _make_name_decoder(
    description: Mapping[str, Any], library: tokenizers.Tokenizer
) -> Callable[[int, str], bytes]:
    """Return what turns a token's id and written form into bytes, by kind of decoder."""
    kinds = {part.get("type") for part in _steps(description.get("decoder"))}
    if "ByteLevel" in kinds:
        return lambda _, name: _decode_byte_level(name)
    if kinds & {"ByteFallback", "Metaspace"} or _SPACE in json.dumps(
        description.get("decoder"), ensure_ascii=False
    ):
        return lambda _, name: _from_sentencepiece(name)
    return lambda token, _: library.decode([token], skip_special_tokens=False).encode()


def _from_sentencepiece(name: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _decode_byte_level(name: str) -> bytes:
    """Return the bytes that letters stand for in GPT-2; a name with others stands for itself."""
    try:
        return name.translate(_UNICODE_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return name.encode()


def _unicode_to_bytes() -> dict[int, int]:
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


_UNICODE_TO_BYTES = _unicode_to_bytes()
