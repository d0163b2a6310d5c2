"""The tokenizer of a new model, made from what it is to learn."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from minillm_repl.chat.template import ROLES
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.documents import pieces

END, UNKNOWN, BPE_END = "<end>", "<unk>", "<|endoftext|>"
_PIECE = 1 << 14  # characters; the library takes 256 texts at once, and needs many times their size
_ENOUGH = 1 << 24  # characters, evenly from a longer corpus, that byte pairs are learnt from


def make_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """Make a tokenizer for a corpus: `char` (every character), `char:N` (the N most frequent) or
    `bpe:N`.

    A token that ends a document is in it if there is more than one document, and those of the roles
    if these are conversations. Raises UserError for a vocabulary too small to be one.
    """
    name, _colon, number = kind.partition(":")
    specials = [*ROLES] if corpus.conversations else [END] if corpus.count > 1 else []
    if name == "bpe":
        from minillm_repl.tokenizer.descriptions import trained_bpe
        from minillm_repl.tokenizer.subword import SubwordTokenizer

        least = 256 + 1 + len(ROLES)
        if int(number) < least:
            raise UserError(
                _(
                    "tokenizer=bpe:{number} is too small: bytes and special tokens alone are "
                    "{least}",
                    number=number,
                    least=least,
                )
            )
        special = [BPE_END, *(ROLES if corpus.conversations else ())]
        description = trained_bpe(_sample(corpus), int(number), special)
        return SubwordTokenizer(
            description, {"eos_token": BPE_END}, len(description["model"]["vocab"])
        )
    points = np.flatnonzero(corpus.characters)
    if number and int(number) < len(points):
        if int(number) < 1:
            raise UserError(_("tokenizer=char:0 knows nothing; take at least one character"))
        order = np.argsort(-corpus.characters[points], kind="stable")
        points = np.sort(points[order[: int(number)]])
        specials.append(UNKNOWN)
    return CharacterTokenizer(
        [chr(point) for point in points if not 0xD800 <= point < 0xE000], specials
    )


def _sample(corpus: Corpus) -> Iterator[str]:
    """Yield all texts of a corpus in pieces, or an even part of them where it is long."""
    texts = (text for document in corpus.documents() for text in document.texts)
    every = -(-int(corpus.characters.sum()) // _ENOUGH)
    return islice((piece for text in texts for piece in pieces(text, _PIECE)), 0, None, every)
