"""Samplers that look at the tokens themselves: bans, biases, and penalties on what is said again.

Scores are float32 arrays (vocab_size,), as in `sampling`, which has the order of all samplers.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.options import Sampling

Scores = NDArray[np.float32]

FILTERED = np.float32(-np.inf)
_MAX_EXPONENT, _LARGEST = 88.0, 1e38  # exp(88) is 1.7e38; float32 ends at 3.4e38


def ban(scores: Scores, banned: Collection[int]) -> Scores:
    """Drop these tokens, unless nothing else is left."""
    scores, before = scores.copy(), scores
    scores[list(banned)] = FILTERED
    return scores if np.isfinite(scores).any() else before


def bias(scores: Scores, biases: Sequence[tuple[int, float]]) -> Scores:
    """Add a number to the score of each of these tokens."""
    scores = scores.copy()
    for token, value in biases:
        scores[token] += np.float32(value)
    return scores


def repeat_penalty(scores: Scores, input_ids: Sequence[int], penalty: float) -> Scores:
    """Make the tokens of the text less likely; a penalty below 1 makes them more likely."""
    scores, factor = scores.copy(), np.float32(penalty)
    ids = np.unique(np.asarray(input_ids, dtype=np.int64))  # (n_seen,)
    seen = scores[ids]  # (n_seen,)
    scores[ids] = np.where(seen < 0, seen * factor, seen / factor)
    return scores


def presence_penalty(scores: Scores, input_ids: Sequence[int], penalty: float) -> Scores:
    """Subtract the penalty from the score of each token of the text."""
    scores = scores.copy()
    scores[np.unique(np.asarray(input_ids, dtype=np.int64))] -= np.float32(penalty)
    return scores


def frequency_penalty(scores: Scores, input_ids: Sequence[int], penalty: float) -> Scores:
    """Subtract the penalty from the score of a token for each time that it is in the text."""
    counts = np.bincount(np.asarray(input_ids, dtype=np.int64), minlength=len(scores))
    return scores - counts.astype(np.float32) * np.float32(penalty)  # (vocab_size,)


def dry(
    scores: Scores, input_ids: Sequence[int], sampling: Sampling, breakers: Collection[int]
) -> Scores:
    """Make tokens less likely that would extend a repetition, the more the longer it is already.

    A repetition never reaches back over a token of `breakers`, nor is one of these penalised.
    """
    text = np.asarray(input_ids, dtype=np.int64)  # (time,)
    ends = (back for back, token in enumerate(reversed(input_ids)) if token in breakers)
    longest = np.zeros(len(scores), np.int64)  # (vocab_size,) of the repetition before each token
    places = np.arange(1, len(text))  # of the tokens that may be said again
    for length in range(1, next(ends, len(text)) + 1):
        places = places[places >= length]
        places = places[text[places - length] == text[-length]]
        if not len(places):
            break
        longest[text[places]] = length
    longest[list(breakers)] = 0
    ids = np.flatnonzero(longest >= sampling.dry_length)
    scores, excess = scores.copy(), (longest[ids] - sampling.dry_length).astype(np.float64)
    # Beyond the largest float32 a penalty grows no more.
    penalties = sampling.dry * np.exp(np.minimum(excess * np.log(sampling.dry_base), _MAX_EXPONENT))
    scores[ids] -= np.minimum(penalties, _LARGEST).astype(np.float32)
    return scores
