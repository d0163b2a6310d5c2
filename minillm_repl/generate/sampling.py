"""From logits to the next token, in the order of the `transformers` library.

Repetition penalty → temperature → top-k → top-p → min-p → softmax → draw. Scores are float32 arrays
(vocab_size,), as there, so that its processors can be the oracle. The score of a token that a
sampler filters out becomes −inf. `fast_sampling` does the same for a large vocabulary in less time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate import Sampling

LN2 = float(np.log(2))
Scores = NDArray[np.float32]
Probabilities = NDArray[np.float64]

_FILTERED = np.float32(-np.inf)
_MIN_TEMPERATURE = 1e-20  # float32 has nothing smaller to divide by that keeps scores finite


class Draw(NamedTuple):
    """A token, and the distributions that it was drawn from; valid until the next draw."""

    token: int
    scores: Scores  # after the samplers
    model: tuple[Probabilities, Probabilities]  # the model's softmax, and its natural logarithms
    sampled: tuple[Probabilities, Probabilities]  # the same of the scores


def draw(
    logits: Scores, sampling: Sampling, input_ids: Sequence[int], rng: np.random.Generator
) -> Draw:
    """Draw the next token from its logits (vocab_size,); this takes exactly one number of `rng`."""
    scores = process_logits(logits, sampling, input_ids)  # (vocab_size,)
    model = softmax(logits)
    sampled = model if scores is logits else softmax(scores)  # no sampler is on: the same
    return Draw(sample_token(sampled[0], rng), scores, model, sampled)


def stages(
    sampling: Sampling, input_ids: Sequence[int]
) -> list[tuple[str, Callable[[Scores], Scores]]]:
    """Return the samplers that are on, by the names of their settings, in their order.

    `input_ids` are the tokens of the text so far, for the repetition penalty.
    """
    on: list[tuple[str, Callable[[Scores], Scores]]] = []
    if sampling.repeat_penalty != 1:
        penalty = sampling.repeat_penalty
        on.append(("repeat-penalty", lambda scores: repeat_penalty(scores, input_ids, penalty)))
    if sampling.temp == 0:
        return [*on, ("temp", greedy)]  # One token is left: there is nothing more to filter.
    if sampling.temp != 1:
        on.append(("temp", lambda scores: temperature(scores, sampling.temp)))
    if sampling.top_k:
        on.append(("top-k", lambda scores: top_k(scores, sampling.top_k)))
    if sampling.top_p < 1:
        on.append(("top-p", lambda scores: top_p(scores, sampling.top_p)))
    if sampling.min_p > 0:
        on.append(("min-p", lambda scores: min_p(scores, sampling.min_p)))
    return on


def process_logits(logits: Scores, sampling: Sampling, input_ids: Sequence[int]) -> Scores:
    """Return the scores after all samplers; the most likely token always stays."""
    for _name, stage in stages(sampling, input_ids):
        logits = stage(logits)  # (vocab_size,)
    return logits


def repeat_penalty(scores: Scores, input_ids: Sequence[int], penalty: float) -> Scores:
    """Make the tokens of the text less likely; a penalty below 1 makes them more likely."""
    scores, factor = scores.copy(), np.float32(penalty)
    ids = np.unique(np.asarray(input_ids, dtype=np.int64))  # (n_seen,)
    seen = scores[ids]  # (n_seen,)
    scores[ids] = np.where(seen < 0, seen * factor, seen / factor)
    return scores


def greedy(scores: Scores) -> Scores:
    """Keep the most likely token only: the limit of a temperature that goes to 0."""
    best = scores.argmax()
    only = np.full_like(scores, _FILTERED)
    only[best] = scores[best]
    return only


def temperature(scores: Scores, temp: float) -> Scores:
    """Make the distribution sharper (below 1) or flatter (above 1)."""
    return scores / np.float32(max(temp, _MIN_TEMPERATURE))


def top_k(scores: Scores, k: int) -> Scores:
    """Keep the k most likely tokens, and those as likely as the k-th."""
    return np.where(scores < kth_largest(scores, k), _FILTERED, scores)


def top_p(scores: Scores, p: float) -> Scores:
    """Keep the smallest set of most likely tokens whose probabilities sum to p or more."""
    order = scores.argsort(kind="stable")  # (vocab_size,) ids, least likely first
    cumulative = softmax(scores)[0][order].astype(np.float32).cumsum()  # (vocab_size,)
    dropped = cumulative <= np.float32(1 - p)
    dropped[-1] = False
    scores = scores.copy()
    scores[order[dropped]] = _FILTERED
    return scores


def min_p(scores: Scores, p: float) -> Scores:
    """Keep the tokens with at least p times the probability of the most likely one."""
    probabilities = softmax(scores)[0].astype(np.float32)
    return np.where(probabilities < np.float32(p) * probabilities.max(), _FILTERED, scores)


def softmax(scores: Scores) -> tuple[Probabilities, Probabilities]:
    """Return the probabilities and their natural logarithms, in float64."""
    logs = scores.astype(np.float64)
    logs -= logs.max()  # exp must not overflow
    probabilities = np.exp(logs)
    total = probabilities.sum()
    probabilities /= total
    logs -= np.log(total)
    return probabilities, logs


def sample_token(probabilities: Probabilities, rng: np.random.Generator) -> int:
    """Draw a token id; this takes exactly one number of `rng`."""
    cumulative = probabilities.cumsum()  # (vocab_size,), up to 1
    token = int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
    if token == len(cumulative):  # Rounding up must not reach past the last candidate.
        return int(probabilities.nonzero()[0][-1])
    return token


def make_rng(seed: int, token_index: int = 0) -> np.random.Generator:
    """Return the random numbers of a seed, beginning with that of token `token_index`."""
    bits = np.random.PCG64(seed)
    bits.advance(token_index)
    return np.random.Generator(bits)


def kth_largest(scores: Scores, k: int) -> np.float32:
    """Return the k-th highest score, or the lowest where there are fewer than k."""
    k = min(k, len(scores))
    score: np.float32 = np.partition(scores, -k)[-k]
    return score


def topk_ids(logits: Scores, k: int) -> list[int]:
    """Return the ids of the k most likely tokens, the likeliest first, ties by id."""
    candidates = np.flatnonzero(logits >= kth_largest(logits, k))  # (k or more,)
    ids: list[int] = candidates[(-logits[candidates]).argsort(kind="stable")][:k].tolist()
    return ids


def rank(logits: Scores, token: int) -> int:
    """Return the place of a token among all, 1 for the likeliest; ties by id."""
    logit = logits[token]
    above = np.count_nonzero(logits > logit) + np.count_nonzero(logits[:token] == logit)
    return int(above) + 1


def entropy(probabilities: Probabilities, logs: Probabilities) -> float:
    """Return −Σ p·log2 p in bits, of probabilities above 0 and their natural logarithms."""
    # Not `@`: numpy gives it to a BLAS library, whose idle threads spin on the decoder's cores.
    return abs(float(np.einsum("i,i", probabilities, logs))) / LN2
