"""Scores a given text: how likely the model finds each of its tokens.

`:prob`, `:choose`, `:surprise`, `:compare`, `:eval` and the server's scored prompts show these
numbers. Needs no torch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minillm_repl.errors import UserError
from minillm_repl.generate import TokenScore, never_interrupted
from minillm_repl.generate.generate import check_finite, common_prefix, prefill
from minillm_repl.generate.sampling import rank, softmax, topk_ids
from minillm_repl.language import _

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder, LocalDecoder

_CHUNK_LOGITS = 1 << 23  # logits per pass: 32 MB in float32


def score(
    decoder: "LocalDecoder",
    ids: Sequence[int],
    since: int = 1,
    n_candidates: int = 0,
    interrupted: Callable[[], bool] = never_interrupted,
) -> Iterator[TokenScore]:
    """Yield the score of each token of `ids` from position `since` on, which is 1 or more.

    What the KV cache shares with `ids` is not read again. Tokens beyond the context are scored
    after the window that the model sees of the text before them. Raises UserError if `interrupted`,
    which is asked between two passes, and if the logits are not finite.
    """
    whole = min(len(ids), decoder.context_length + 1)  # each of these has all before it in sight
    if since < whole:
        yield from _score_whole(decoder, ids[:whole], since, n_candidates, interrupted)
    for position in range(max(since, whole), len(ids)):
        logits = read_window(decoder, ids[:position], interrupted)  # (vocab,)
        yield from score_logits(logits[None], ids[position : position + 1], n_candidates)


def read_window(
    decoder: "Decoder", ids: Sequence[int], interrupted: Callable[[], bool]
) -> NDArray[np.float32]:
    """Return the logits (vocab,) after what the model sees of a text of one token or more.

    Raises UserError if interrupted, or if they are not finite.
    """
    logits = prefill(decoder, ids, interrupted)
    if logits is None:
        raise UserError(_("stopped"))
    return check_finite(logits, len(ids))


def _score_whole(
    decoder: "LocalDecoder",
    ids: Sequence[int],
    since: int,
    n_candidates: int,
    interrupted: Callable[[], bool],
) -> Iterator[TokenScore]:
    first = since - 1  # the token whose logits are the first to be wanted
    start = min(common_prefix(decoder, ids[:-1])[1], first)
    decoder.trim(start)
    chunk, last = decoder.prefill_chunk, len(ids) - 1
    for place in range(start, first, chunk):
        _check_running(interrupted)
        decoder.prefill(ids[place : min(place + chunk, first)])
    chunk = max(1, min(chunk, _CHUNK_LOGITS // decoder.vocab_size))
    for place in range(first, last, chunk):
        _check_running(interrupted)
        read = ids[place : min(place + chunk, last)]
        logits = decoder.prefill_all(read)  # (time, vocab)
        for number, row in enumerate(logits, place + 1):
            check_finite(row, number)
        yield from score_logits(logits, ids[place + 1 : place + 1 + len(read)], n_candidates)


def _check_running(interrupted: Callable[[], bool]) -> None:
    if interrupted():
        raise UserError(_("stopped"))


def score_logits(
    logits: NDArray[np.float32], targets: Sequence[int], n_candidates: int = 0
) -> Iterator[TokenScore]:
    """Yield the score of each target; logits (time, vocab) are those before it."""
    for row, target in zip(logits, targets, strict=True):
        logprobs = softmax(row)[1]  # (vocab,)
        top = topk_ids(row, n_candidates) if n_candidates else []
        yield TokenScore(
            id=target,
            logprob=float(logprobs[target]),
            rank=rank(row, target),
            top=tuple((token, float(logprobs[token])) for token in top),
        )
