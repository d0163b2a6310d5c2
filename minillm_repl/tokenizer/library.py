"""The `tokenizers` library: its errors and settings, descriptions made here, and special tokens.

A description is the parsed content of a tokenizer.json.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import tokenizers

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import BYTE_NAMES, UNK_TOKEN, Escapes
from minillm_repl.tokenizer.description import rename_tokens

BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
"""The classes of the `transformers` library whose files `byte_level_bpe` reads."""
# How Qwen 2 splits a text into words, copied from its tokenizer.json.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn every error of the library into a UserError.

    A panic of its Rust code is a BaseException without a public class.
    """
    try:
        yield
    except UserError:
        raise
    # Any error: the library documents none, and raises plain Exception for a bad description.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            _("the tokenizers library failed: {error:.200}", error=safe_line(str(error)))
        ) from None


def make_tokenizer(description: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of a description (JSON text). It never truncates or pads a text."""
    library = tokenizers.Tokenizer.from_str(description)
    # A tokenizer.json may ask for both; either would change what the model reads.
    library.no_truncation()
    library.no_padding()
    return library


def replace_surrogates(text: str) -> str:
    """Return a text with `?` in place of lone surrogates, which the library refuses.

    Typed bytes that are not UTF-8 arrive as surrogates.
    """
    return text.encode("utf-8", "replace").decode()


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: str,
    *,
    tokenizer_class: str = BYTE_LEVEL_CLASSES[0],
    add_prefix_space: bool = False,
) -> dict[str, Any]:
    """Return the description of a tokenizer like GPT-2's, made of `vocab.json` and `merges.txt`.

    `tokenizer_class` is one of BYTE_LEVEL_CLASSES. `<|endoftext|>` becomes a special token if the
    vocabulary has it. Raises UserError if a merge is not in the vocabulary.
    """
    lines = (line.rstrip("\r") for line in merges.split("\n"))
    pairs = [
        line.partition(" ")[::2]
        for line in lines
        if line.strip() and not line.startswith("#version")
    ]
    with library_errors():
        library = tokenizers.Tokenizer(tokenizers.models.BPE(dict(vocabulary), pairs))
    if tokenizer_class in ("GPTNeoXTokenizer", "Qwen2Tokenizer"):
        library.normalizer = tokenizers.normalizers.NFC()
    parts = tokenizers.pre_tokenizers
    if tokenizer_class == "Qwen2Tokenizer":
        split = parts.Split(tokenizers.Regex(_QWEN2), "isolated")
        letters = parts.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
        library.pre_tokenizer = parts.Sequence([split, letters])
    else:
        library.pre_tokenizer = parts.ByteLevel(add_prefix_space=add_prefix_space)
    library.decoder = tokenizers.decoders.ByteLevel()
    # In GPT-2's vocab.json it is an ordinary entry.
    library.add_special_tokens([name for name in ("<|endoftext|>",) if name in vocabulary])
    return _to_dict(library)


def train_bpe(
    texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]
) -> dict[str, Any]:
    """Return the description of a byte-level BPE of `vocab_size` tokens, trained on texts.

    The size counts the 256 bytes and the special tokens. No text is unknown to it.
    """
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with library_errors():
        library.train_from_iterator(texts, trainer)
    return _to_dict(library)


def character_level(
    characters: Sequence[str], specials: Sequence[str] = (), *, has_bytes: bool = False
) -> dict[str, Any]:
    """Return the description of a tokenizer of one token per character, and bytes for the others.

    Other programs open a character model through it.
    """
    unk_token = UNK_TOKEN if UNK_TOKEN in specials else None
    tokens = (*characters, *specials, *(sorted(BYTE_NAMES) if has_bytes else ()))
    vocabulary = {name: token for token, name in enumerate(tokens)}
    # A BPE without merges splits a text into characters.
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token=unk_token, byte_fallback=has_bytes)
    )
    library.normalizer = tokenizers.normalizers.NFC()
    decoders = tokenizers.decoders
    fuse = decoders.Fuse()
    library.decoder = decoders.Sequence([decoders.ByteFallback(), fuse]) if has_bytes else fuse
    library.add_special_tokens(list(specials))
    return _to_dict(library)


def _to_dict(library: tokenizers.Tokenizer) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(library.to_str())
    return description


# -- special tokens: found as the library finds them, or escaped as plain text


def find_prefix_ids(library: tokenizers.Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the ids that a tokenizer puts before every text.

    The first text that has tokens shows them. Ids after the text (`</s>`) are left out: they
    would end a text that the model is to continue.
    """
    for text in texts:
        encoding = library.encode(text)
        without_special = library.encode(text, add_special_tokens=False)
        if without_special.ids:
            # 1 marks a special token; the prefix ends at the first 0.
            mask = [*encoding.special_tokens_mask, 0]
            return encoding.ids[: mask.index(0)]
    return []


def names_pattern(tokens: Iterable[tokenizers.AddedToken]) -> re.Pattern[str]:
    """Return the pattern that finds names of added tokens, the longest first as in the library."""
    ordered = sorted(
        (each for each in tokens if each.content), key=lambda each: len(each.content), reverse=True
    )
    edges = {False: "{}", True: r"(?<!\w){}(?!\w)"}
    alternatives = [edges[each.single_word].format(re.escape(each.content)) for each in ordered]
    return re.compile("|".join(alternatives) or "(?!)")


def random_names(added: Mapping[int, tokenizers.AddedToken]) -> dict[str, str]:
    """Return an unguessable name for each special token, with the same first and last character."""
    # Random, so that no text can contain such a name on purpose.
    nonce = secrets.token_hex(8)
    names = {token: each.content for token, each in added.items() if each.special and each.content}
    return {name: f"{name[0]}{nonce}{token:x}{name[-1]}" for token, name in names.items()}


class EscapeEncoder:
    """Encodes a text in which some names mean special tokens, and others are plain text.

    The library has one switch for a whole text. A text cut at the names would get other tokens at
    each cut: a space comes before a part, or is lost. Therefore a second tokenizer has random
    names for the special tokens, and the text is encoded once with these names where a special
    token is meant.
    """

    def __init__(self, description: str, added: Mapping[int, tokenizers.AddedToken]) -> None:
        self._added_tokens, self._aliases = added, random_names(added)
        self._pattern = names_pattern(each for each in added.values() if each.special)
        # A post-processor would add a start token.
        aliased = rename_tokens(json.loads(description), self._aliases)
        self._library = make_tokenizer(
            json.dumps({**aliased, "post_processor": None}, ensure_ascii=False)
        )

    @cached_property
    def _ids(self) -> dict[int | None, int]:
        """The ids of added tokens, by their ids in the second tokenizer."""
        named = {
            self._aliases.get(each.content, each.content): token
            for token, each in self._added_tokens.items()
        }
        return {self._library.token_to_id(name): token for name, token in named.items()}

    def encode(
        self, text: str, escapes: Escapes, positions: Sequence[int] = ()
    ) -> tuple[list[int], tokenizers.Encoding, list[int]]:
        """Return the ids, the library's encoding, and `positions` moved to the text it read.

        The random names are longer or shorter than the real ones, so the positions move.
        """
        matches = list(self._pattern.finditer(text))
        aliased = self._pattern.sub(lambda name: self._aliases[name[0]], text).translate(escapes)
        growth = [(name.end(), len(self._aliases[name[0]]) - len(name[0])) for name in matches]
        shifted = [place + sum(more for end, more in growth if end <= place) for place in positions]
        encoding = self._library.encode(replace_surrogates(aliased), add_special_tokens=False)
        return [self._ids.get(token, token) for token in encoding.ids], encoding, shifted


def skipped_characters(
    library: tokenizers.Tokenizer, plain: tokenizers.Tokenizer, text: str
) -> list[str]:
    """Return the characters that become no token once they are normalised; spaces do not count.

    `plain` takes the names of special tokens for text.
    """
    plain.encode_special_tokens = True
    with library_errors():
        if library.normalizer:
            text = library.normalizer.normalize_str(replace_surrogates(text))
        # A tokenizer may drop spaces on purpose.
        known = {each: replace_surrogates(each) for each in text if not each.isspace()}
        encoded = plain.encode_batch(list(known.values()), add_special_tokens=False)
    return [each for each, found in zip(known, encoded, strict=True) if not found.ids]
