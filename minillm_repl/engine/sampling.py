"""From logits to the distribution that is drawn from, in the order of the `transformers` library.

Repetition penalty → temperature → top-k → top-p → min-p → softmax → draw. Scores are float32 arrays (vocabulary,), as
there, so that its processors can be the oracle; what a sampler cuts becomes −inf.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from minillm_repl.engine.options import Sampling

LN2 = float(np.log(2))
Scores = NDArray[np.float32]
Probabilities = NDArray[np.float64]


def stages(sampling: Sampling, seen: Sequence[int]) -> list[tuple[str, Callable[[Scores], Scores]]]:
    """Return the samplers that are on, named, in the order in which they are applied.

    `seen` are the token ids of the text so far, for the repetition penalty.
    """
    applied: list[tuple[str, Callable[[Scores], Scores]]] = []
    if sampling.repeat_penalty != 1:
        applied.append(("repeat-penalty", lambda scores: _penalise(scores, seen, sampling.repeat_penalty)))
    if sampling.temp == 0:
        return [*applied, ("temp", _likeliest)]  # one token is left: nothing more to cut
    if sampling.temp != 1:
        applied.append(("temp", lambda scores: scores / np.float32(max(sampling.temp, 1e-20))))
    if sampling.top_k:
        applied.append(("top-k", lambda scores: _top_k(scores, sampling.top_k)))
    if sampling.top_p < 1:
        applied.append(("top-p", lambda scores: _top_p(scores, sampling.top_p)))
    if sampling.min_p > 0:
        applied.append(("min-p", lambda scores: _min_p(scores, sampling.min_p)))
    return applied


def process(logits: Scores, sampling: Sampling, seen: Sequence[int]) -> Scores:
    """Return the scores after all samplers; the likeliest token is never cut."""
    for _, stage in stages(sampling, seen):
        logits = stage(logits)
    return logits


def softmax(scores: Scores) -> tuple[Probabilities, Probabilities]:
    """Return probabilities and their natural logarithms, in float64; the only softmax over a vocabulary here."""
    logs = scores.astype(np.float64)
    logs -= logs.max()
    probabilities = np.exp(logs)
    total = probabilities.sum()
    probabilities /= total
    logs -= np.log(total)
    return probabilities, logs


def draw(probabilities: Probabilities, rng: np.random.Generator) -> int:
    """Draw a token id, using up exactly one number of `rng`."""
    cumulative = probabilities.cumsum()
    place = int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
    if place == len(cumulative):  # a product rounded up must not reach past the last candidate
        place = int(probabilities.nonzero()[0][-1])
    return place


def numbers(seed: int, place: int = 0) -> np.random.Generator:
    """Return the random numbers of a seed, from the one on that draws a completion's token number `place`."""
    bits = np.random.PCG64(seed)
    bits.advance(place)
    return np.random.Generator(bits)


def likeliest(logits: Scores, top: int) -> list[int]:
    """Return the ids of the `top` likeliest tokens, ties by id."""
    top = min(top, len(logits))
    threshold = np.partition(logits, -top)[-top]
    above = np.flatnonzero(logits >= threshold)
    order: list[int] = above[(-logits[above]).argsort(kind="stable")][:top].tolist()
    return order


def rank(logits: Scores, token: int) -> int:
    """Return a token's place among all, 1 being the likeliest; ties by id."""
    own = logits[token]
    return int(np.count_nonzero(logits > own) + np.count_nonzero(logits[:token] == own)) + 1


def entropy(probabilities: Probabilities, logs: Probabilities) -> float:
    """Return −Σ p·log2 p, in bits, of probabilities above 0 and their natural logarithms."""
    # Not `@`: numpy gives that to a library whose threads go on looking for work while the decoder needs every core.
    return abs(float(np.einsum("i,i", probabilities, logs))) / LN2


def _likeliest(scores: Scores) -> Scores:
    only = np.full_like(scores, -np.inf)
    best = scores.argmax()
    only[best] = scores[best]
    return only


def _penalise(scores: Scores, seen: Sequence[int], penalty: float) -> Scores:
    scores = scores.copy()
    ids = np.unique(np.asarray(seen, dtype=np.int64))
    found = scores[ids]
    scores[ids] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))
    return scores


def _top_k(scores: Scores, k: int) -> Scores:
    if k >= len(scores):
        return scores
    threshold = np.partition(scores, -k)[-k]
    return np.where(scores < threshold, np.float32(-np.inf), scores)  # ties with the k-th stay


def _top_p(scores: Scores, p: float) -> Scores:
    order = scores.argsort(kind="stable")  # least likely first
    cumulative = softmax(scores)[0][order].astype(np.float32).cumsum()
    cut = cumulative <= np.float32(1 - p)
    cut[-1] = False  # the likeliest always stays
    scores = scores.copy()
    scores[order[cut]] = -np.inf
    return scores


def _min_p(scores: Scores, p: float) -> Scores:
    probabilities = softmax(scores)[0].astype(np.float32)
    return np.where(probabilities < np.float32(p) * probabilities.max(), np.float32(-np.inf), scores)
