"""The tokenizer of a new model, made from what it is to learn."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from minillm_repl.chat.template import ROLE_TOKENS
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.documents import split_chunks

END_TOKEN, UNK_TOKEN, BPE_EOS_TOKEN = "<end>", "<unk>", "<|endoftext|>"
_CHUNK_CHARACTERS = (
    1 << 14
)  # characters; the library takes 256 texts at once, and needs many times their size
_MAX_CHARACTERS = (
    1 << 24
)  # characters, evenly from a longer corpus, that byte pairs are learnt from


def make_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """Make a corpus's tokenizer: `char` (every character), `char:N` (the N most frequent), `bpe:N`.

    A token that ends a document is in it if there is more than one document, and those of the roles
    if these are conversations. Raises UserError for a vocabulary too small to be one.
    """
    name, _colon, number = kind.partition(":")
    specials = (
        [*ROLE_TOKENS] if corpus.is_conversational else [END_TOKEN] if corpus.count > 1 else []
    )
    if name == "bpe":
        from minillm_repl.tokenizer.library import train_bpe
        from minillm_repl.tokenizer.subword import SubwordTokenizer

        min_size = 256 + 1 + len(ROLE_TOKENS)
        if int(number) < min_size:
            raise UserError(
                _(
                    "tokenizer=bpe:{number} is too small: bytes and special tokens alone "
                    "take {least}",
                    number=number,
                    least=min_size,
                )
            )
        special = [BPE_EOS_TOKEN, *(ROLE_TOKENS if corpus.is_conversational else ())]
        description = train_bpe(_sample_texts(corpus), int(number), special)
        return SubwordTokenizer(
            description, {"eos_token": BPE_EOS_TOKEN}, len(description["model"]["vocab"])
        )
    code_points = np.flatnonzero(corpus.character_counts)
    if number and int(number) < len(code_points):
        if int(number) < 1:
            raise UserError(_("tokenizer=char:0 has no characters; use at least 1"))
        order = np.argsort(-corpus.character_counts[code_points], kind="stable")
        code_points = np.sort(code_points[order[: int(number)]])
        specials.append(UNK_TOKEN)
    return CharacterTokenizer(
        [chr(code_point) for code_point in code_points if not 0xD800 <= code_point < 0xE000],
        specials,
    )


def _sample_texts(corpus: Corpus) -> Iterator[str]:
    """Yield all texts of a corpus in pieces, or an even part of them where it is long."""
    texts = (text for document in corpus.documents() for text in document.texts)
    every = -(-int(corpus.character_counts.sum()) // _MAX_CHARACTERS)
    return islice(
        (chunk for text in texts for chunk in split_chunks(text, _CHUNK_CHARACTERS)), 0, None, every
    )
