"""From logits to the distribution that is drawn from, in the order of the `transformers` library.

Repetition penalty → temperature → top-k → top-p → min-p → softmax → draw. Scores are float32 arrays
(vocabulary,), as there, so that its processors can be the oracle; what a sampler cuts becomes −inf.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.options import Sampling

LN2 = float(np.log(2))
Scores = NDArray[np.float32]
Probabilities = NDArray[np.float64]
Arrays = tuple[Probabilities, Probabilities]

# tokens: of more than these, what is fresh or not needed costs more than avoiding it
_LARGE = 4_096
_BLOCK = 256


def stages(sampling: Sampling, seen: Sequence[int]) -> list[tuple[str, Callable[[Scores], Scores]]]:
    """Return the samplers that are on, named, in the order in which they are applied.

    `seen` are the token ids of the text so far, for the repetition penalty.
    """
    applied: list[tuple[str, Callable[[Scores], Scores]]] = []
    if sampling.repeat_penalty != 1:
        applied.append(
            ("repeat-penalty", lambda scores: _penalise(scores, seen, sampling.repeat_penalty))
        )
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


def softmax(scores: Scores, into: Arrays | None = None) -> Arrays:
    """Return probabilities and their natural logarithms, in float64; the only softmax over a
    vocabulary here.

    `into` is what `arrays` gave, to be filled.
    """
    if into is None:
        probabilities, logs = None, scores.astype(np.float64)
    else:
        probabilities, logs = into
        kept = scores > -np.inf
        if np.count_nonzero(kept) < len(scores) // 2:
            probabilities.fill(0)
            logs.fill(-np.inf)
            probabilities[kept], logs[kept] = softmax(scores[kept])
            return into
        logs[:] = scores
    logs -= logs.max()
    probabilities = np.exp(logs, out=probabilities)
    total = probabilities.sum()
    probabilities /= total
    logs -= np.log(total)
    return probabilities, logs


def arrays(vocabulary: int) -> Arrays | None:
    """Return room for one `softmax` after the other, where that is faster: where the vocabulary
    is large.
    """
    return (np.empty(vocabulary), np.empty(vocabulary)) if vocabulary >= _LARGE else None


def draw(probabilities: Probabilities, rng: np.random.Generator) -> int:
    """Draw a token id, using up exactly one number of `rng`."""
    aim, start = rng.random(), 0
    if len(probabilities) < _LARGE:
        cumulative = probabilities.cumsum()
        aim *= cumulative[-1]
    else:  # sums of blocks say in which one it is
        blocks = np.add.reduceat(probabilities, np.arange(0, len(probabilities), _BLOCK)).cumsum()
        aim *= blocks[-1]
        block = min(int(blocks.searchsorted(aim, side="right")), len(blocks) - 1)
        aim -= blocks[block - 1] if block else 0.0
        start = block * _BLOCK
        cumulative = probabilities[start : start + _BLOCK].cumsum()
    place = int(cumulative.searchsorted(aim, side="right"))
    if place == len(cumulative):  # what was rounded up must not reach past the last candidate
        return int(probabilities[: start + place].nonzero()[0][-1])
    return start + place


def numbers(seed: int, place: int = 0) -> np.random.Generator:
    """Return the random numbers of a seed, from the one on that draws a completion's token
    number `place`.
    """
    bits = np.random.PCG64(seed)
    bits.advance(place)
    return np.random.Generator(bits)


def likeliest(logits: Scores, top: int) -> list[int]:
    """Return the ids of the `top` likeliest tokens, ties by id."""
    above = np.flatnonzero(logits >= _least_of(logits, top))
    order: list[int] = above[(-logits[above]).argsort(kind="stable")][:top].tolist()
    return order


def rank(logits: Scores, token: int) -> int:
    """Return a token's place among all, 1 being the likeliest; ties by id."""
    own = logits[token]
    return int(np.count_nonzero(logits > own) + np.count_nonzero(logits[:token] == own)) + 1


def entropy(probabilities: Probabilities, logs: Probabilities) -> float:
    """Return −Σ p·log2 p, in bits, of probabilities above 0 and their natural logarithms."""
    # Not `@`: numpy gives that to a library whose threads go on looking for work while the decoder
    # needs every core.
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
    # ties with the k-th stay
    return np.where(scores < _least_of(scores, k), np.float32(-np.inf), scores)


def _least_of(scores: Scores, top: int) -> np.float32:
    """Return the least of the `top` highest scores."""
    top = min(top, len(scores))
    least: np.float32 = np.partition(scores, -top)[-top]
    return least


def _top_p(scores: Scores, p: float) -> Scores:
    probabilities, most = softmax(scores)[0], np.float32(1 - p)
    low = scores < _least_of(scores, _LARGE)
    cut_anyway = probabilities.sum(where=low)
    if cut_anyway > most:  # then there is nothing for it but to sort them all
        low[:], cut_anyway = False, 0.0
    rest = np.flatnonzero(~low)
    order = rest[scores[rest].argsort(kind="stable")]  # least likely first
    shares = probabilities[order].astype(np.float32)
    shares[0] += cut_anyway
    cut = shares.cumsum() <= most
    cut[-1] = False  # the likeliest always stays
    scores = np.where(low, np.float32(-np.inf), scores)
    scores[order[cut]] = -np.inf
    return scores


def _min_p(scores: Scores, p: float) -> Scores:
    probabilities = softmax(scores)[0].astype(np.float32)
    return np.where(
        probabilities < np.float32(p) * probabilities.max(), np.float32(-np.inf), scores
    )
