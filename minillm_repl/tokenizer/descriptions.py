"""Descriptions (tokenizer.json) of tokenizers made here: of GPT-2's files, texts, characters."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from minillm_repl.tokenizer.character import UNK_TOKEN
from minillm_repl.tokenizer.library import library_errors

BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
"""The classes of the `transformers` library whose files `byte_level_bpe` reads."""
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: str,
    *,
    tokenizer_class: str = BYTE_LEVEL_CLASSES[0],
    add_prefix_space: bool = False,
) -> dict[str, Any]:
    """Return the description of a tokenizer like GPT-2's from its `vocab.json` and `merges.txt`.

    Its `<|endoftext|>` is a special token, where the vocabulary has one. `kind` is one of
    `BYTE_LEVEL`. Raises UserError if they do not go together.
    """
    lines = (line.rstrip("\r") for line in merges.split("\n"))
    pairs = [
        line.partition(" ")[::2]
        for line in lines
        if line.strip() and not line.startswith("#version")
    ]
    parts = tokenizers.pre_tokenizers
    split = (
        [parts.Split(tokenizers.Regex(_QWEN2), "isolated")]
        if tokenizer_class == "Qwen2Tokenizer"
        else []
    )
    with library_errors():
        library = tokenizers.Tokenizer(tokenizers.models.BPE(dict(vocabulary), pairs))
    if tokenizer_class in ("GPTNeoXTokenizer", "Qwen2Tokenizer"):
        library.normalizer = tokenizers.normalizers.NFC()
    letters = parts.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not split)
    library.pre_tokenizer = parts.Sequence([*split, letters]) if split else letters
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([name for name in ("<|endoftext|>",) if name in vocabulary])
    return _to_dict(library)


def train_bpe(
    texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str]
) -> dict[str, Any]:
    """Return the description of a byte-level BPE of `size` tokens in all, learnt from texts.

    All 256 bytes and the special tokens are among them, so nothing is unknown to it.
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


def character_level(characters: Sequence[str], specials: Sequence[str] = ()) -> dict[str, Any]:
    """Return the description of a tokenizer of one token per character, for programs that know
    only this library.
    """
    unk_token = UNK_TOKEN if UNK_TOKEN in specials else None
    vocabulary = {character: i for i, character in enumerate((*characters, *specials))}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token=unk_token))
    library.normalizer = tokenizers.normalizers.NFC()
    library.decoder = tokenizers.decoders.Fuse()
    library.add_special_tokens(list(specials))
    return _to_dict(library)


def _to_dict(library: tokenizers.Tokenizer) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(library.to_str())
    return description
