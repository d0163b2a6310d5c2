"""What becomes of a text before the model thinks: tokens, and a vector for each. Needs no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.insight.views.texts import Piece, TokensView
from minillm_repl.model.quantised import QuantisedMatrix
from minillm_repl.tokenizer.base import Token, Tokenizer
from minillm_repl.tokenizer.lookup import count_prefix_spaces


def tokens_view(
    tokenizer: Tokenizer, embedding: NDArray[Any] | QuantisedMatrix, ids: Sequence[int], text: str
) -> TokensView:
    """Return the tokens of a text, each with its row of the embedding (vocab, width)."""
    tokens = [Token.from_id(tokenizer, token) for token in ids]
    vectors = embedding[list(ids)].astype(np.float32)  # (time, width)
    norms = np.linalg.norm(vectors, axis=-1)
    sizes = [len(token.bytes) for token in tokens if token.bytes]
    own = sum(sizes) - count_prefix_spaces(
        tokenizer, ids, text
    )  # bytes of these that are of the text
    return TokensView(
        characters=len(text),
        bytes=len(text.encode("utf-8", "replace")),
        tokens_per_character=len(sizes) / len(text) if text else None,
        bytes_per_token=own / len(sizes) if sizes else None,
        pieces=tuple(
            Piece(token, float(norm), tuple(vector.tolist()))
            for token, norm, vector in zip(tokens, norms, vectors, strict=True)
        ),
    )
