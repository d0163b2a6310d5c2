"""Subword tokenizers (byte-level BPE, SentencePiece-like BPE, Unigram), run by `tokenizers`."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import tokenizers

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.sandbox import largest_token_id
from minillm_repl.tokenizer import THOUGHT_TAGS, Escapes, Span, Tokenizer
from minillm_repl.tokenizer.description import (
    find_unk_token,
    make_name_decoder,
    matches_special_names,
    rename_tokens,
    strips_space,
    with_bos_token,
    without_prefix_space,
)
from minillm_repl.tokenizer.library import (
    EscapeEncoder,
    find_prefix_ids,
    library_errors,
    make_tokenizer,
    random_names,
    replace_surrogates,
    skipped_characters,
)
from minillm_repl.tokenizer.plain import assemble, largest_plain_id, make_plain_tokenizer


class SubwordTokenizer(Tokenizer):
    """The tokenizer of a tokenizer.json, given as its parsed JSON; `text` is the same as JSON text.

    `special_tokens_map` gives the special tokens by role (`bos_token`, `eos_token`, `unk_token`).
    `vocab_size` is the number of ids of the model; there may be fewer tokens. With `text` None, the
    library writes the text when needed. Raises UserError if it refuses the description.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        special_tokens_map: Mapping[str, str],
        vocab_size: int,
        text: str | None = "",
    ) -> None:
        self.special_tokens_map, self._vocab_size = dict(special_tokens_map), vocab_size
        largest = largest_plain_id(description)
        # The text takes a tenth of the memory of the parsed description.
        self._text = text or ""
        if not text and (text is not None or largest is None):
            self._text = json.dumps(description, ensure_ascii=False)
        with library_errors():
            library = None if largest is None else make_plain_tokenizer(description)
        if library is None:
            self._text = self._text or json.dumps(description, ensure_ascii=False)
            # A hostile description can crash the library: the sandbox tries it first.
            largest = largest_token_id(self._text)
        with library_errors():
            self._tokenizer = make_tokenizer(self._text) if library is None else library
            self._load_library(description)
        assert largest is not None
        self._all_in_range = max((largest, *self._names, *self._special_tokens)) < vocab_size
        self._check_ids(list(self.start_ids))

    def _load_library(self, description: Mapping[str, Any]) -> None:
        """Make the library's other tokenizers, and what is known of each token."""
        # A text that continues another one gets no space before it.
        continuing = without_prefix_space(description)
        self._tokenizer_without_prefix = self._tokenizer
        if continuing != description:
            self._tokenizer_without_prefix = (
                assemble(continuing, self._tokenizer.model)
                if largest_plain_id(continuing) is not None
                else make_tokenizer(json.dumps(continuing, ensure_ascii=False))
            )
        self._added_tokens = self._tokenizer.get_added_tokens_decoder()
        # Special tokens without a role (`<|im_end|>`) are control too, and never text.
        self._special_tokens = {
            token: entry.content
            for token, entry in self._added_tokens.items()
            if entry.special and entry.content not in THOUGHT_TAGS
        }
        # A vocabulary with scores is a list, which the library has numbered.
        vocabulary = description["model"].get("vocab")
        if not isinstance(vocabulary, dict):
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        self._names = {token: name for name, token in vocabulary.items()}
        self._decode_name = make_name_decoder(description, self._tokenizer)
        ordinary = {
            token: entry.content
            for token, entry in self._added_tokens.items()
            if token not in self._special_tokens
        }
        self._names |= ordinary
        self._token_bytes = {token: name.encode() for token, name in ordinary.items()}
        self.prefix = " " if continuing != description and strips_space(description) else ""
        self.unk_token = find_unk_token(description)
        self._plain_tokenizer, self._plain_tokenizer_without_prefix = self._make_plain_tokenizers(
            description
        )
        prefix_ids = find_prefix_ids(self._tokenizer, ["a", "0", "가", *islice(vocabulary, 100)])
        self.start_ids = tuple(prefix_ids)

    @cached_property
    def _may_skip(self) -> bool:
        """Whether a text can have characters that become no token: not if all 256 bytes are."""
        # A token of one byte has a name of one character, or one like `<0x0A>`.
        short = (token for token, name in self._names.items() if len(name) in (1, 6))
        single_bytes = {piece for piece in map(self.token_bytes, short) if len(piece) == 1}
        return not self.unk_token and len(single_bytes) < 256

    def _make_plain_tokenizers(
        self, description: Mapping[str, Any]
    ) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Return two tokenizers for text without special tokens: for a whole text, for a part.

        In them the special tokens have random names, where a model would find the real ones.
        """
        # A BPE splits such a name into ordinary tokens once the library is told to ignore it.
        if not matches_special_names(description) or not self.special_names:
            return self._tokenizer, self._tokenizer_without_prefix
        hidden = rename_tokens(description, random_names(self._added_tokens))
        whole = json.dumps(hidden, ensure_ascii=False)
        part = json.dumps(without_prefix_space(hidden), ensure_ascii=False)
        return make_tokenizer(whole), make_tokenizer(part)

    @property
    def vocab_size(self) -> int:
        """The number of ids of the model."""
        return self._vocab_size

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids; with `add_special`, after the start token that its own file asks for.

        A token that the file puts after a text is left out: every text here may go on. Raises
        UserError for a token without an embedding in the model.
        """
        ids = self._encode(text, add_special, parse_special).ids
        return self._check_ids([*self.start_ids, *ids] if add_special else ids)

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> tokenizers.Encoding:
        if parse_special:
            whole, part = self._tokenizer, self._tokenizer_without_prefix
        else:
            whole, part = self._plain_tokenizer, self._plain_tokenizer_without_prefix
        library = whole if add_special else part
        library.encode_special_tokens = not parse_special
        with library_errors():
            return library.encode(replace_surrogates(text), add_special_tokens=False)

    # `escapes` is only read.
    def encode_rendered(self, text: str, escapes: Escapes = {}) -> list[int]:  # noqa: B006
        """Return the ids of a rendered chat template, without a start token.

        Names of special tokens mean the tokens.
        """
        return self._encode_rendered(text, escapes)[0]

    def encode_with_mask(
        # `escapes` is only read.
        self, text: str, spans: Sequence[Span], escapes: Escapes = {}  # noqa: B006
    ) -> tuple[list[int], list[bool]]:  # fmt: skip
        """Return the ids of a rendered chat template, and a mask of the ids that touch a span."""
        ids, encoding, boundaries = self._encode_rendered(
            text, escapes, [place for span in spans for place in span]
        )
        # Bisecting is fast: a long training text has thousands of spans.
        starts = [start for start, _end in encoding.offsets]  # characters of the rendered text
        ends = [end for _start, end in encoding.offsets]
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

    @property
    def _json(self) -> str:
        """Its tokenizer.json."""
        if not self._text:
            self._text = self._tokenizer.to_str()
        return self._text

    @cached_property
    def _escape_encoder(self) -> EscapeEncoder:
        return EscapeEncoder(self._json, self._added_tokens)

    def _check_ids(self, ids: list[int]) -> list[int]:
        """Return the ids. Raises UserError if the model has no embedding for one.

        Some folders add a `<pad>` without one.
        """
        # Most models: then no id needs a check.
        if self._all_in_range:
            return ids
        out_of_range = next((token for token in ids if token >= self._vocab_size), None)
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
        """Return the parts of `text` that the vocabulary lacks, each once, in order."""
        if not self.unk_token:
            libraries = self._tokenizer_without_prefix, self._plain_tokenizer_without_prefix
            return skipped_characters(*libraries, text) if self._may_skip else []
        # The offsets of unknown tokens give their characters.
        encoding, unk_id = self._encode(text, False, False), self.token_to_id(self.unk_token)
        offsets = zip(encoding.ids, encoding.offsets, strict=True)
        unknown = (text[first:last] for token, (first, last) in offsets if token == unk_id)
        return list(dict.fromkeys(unknown))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; none for a special token or an unused id."""
        if token in self._special_tokens or token not in self._names:
            return b""
        if token not in self._token_bytes:
            with library_errors():
                self._token_bytes[token] = self._decode_name(token, self._names[token])
        return self._token_bytes[token]

    def special_name(self, token: int) -> str:
        """Return the name of a special token, or `<unused 50300>` for an unused id."""
        if token in self._special_tokens:
            return self._special_tokens[token]
        return "" if token in self._names else f"<unused {token}>"

    def token_to_id(self, name: str) -> int | None:
        """Return the id of the token with exactly this name; None without an embedding for it."""
        token = self._tokenizer.token_to_id(name)
        return token if token is not None and token < self._vocab_size else None

    def encode_batch(self, texts: list[str], *, add_special: bool = False) -> list[list[int]]:
        """Return the ids of texts, as `encode` does; the library uses all CPU cores."""
        library = self._plain_tokenizer if add_special else self._plain_tokenizer_without_prefix
        library.encode_special_tokens = True
        prefix = self.start_ids if add_special else ()
        with library_errors():  # the fast variant computes no offsets, which a corpus does not need
            found = library.encode_batch_fast(texts, add_special_tokens=False)
        return [self._check_ids([*prefix, *encoding.ids]) for encoding in found]

    def with_start(self, name: str) -> "SubwordTokenizer":
        """Return this tokenizer with a start token, unless it has one, or no such token."""
        if self.start_ids or self.token_to_id(name) is None:
            return self
        names = {"bos_token": name, **self.special_tokens_map}
        return SubwordTokenizer(with_bos_token(self.description, name), names, self._vocab_size)

    @property
    def special_names(self) -> list[str]:
        """The names of all special tokens."""
        return [entry.content for entry in self._added_tokens.values() if entry.special]

    @property
    def added_names(self) -> list[str]:
        """The names of all added tokens, special or not."""
        return [entry.content for entry in self._added_tokens.values() if entry.content.strip()]

    @property
    def description(self) -> dict[str, Any]:
        """The parsed content of its tokenizer.json."""
        return json.loads(self._json)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "subword", ...}` with the complete description."""
        return {
            "type": "subword",
            "size": self._vocab_size,
            "names": self.special_tokens_map,
            "description": self.description,
        }
