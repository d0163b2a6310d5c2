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
SoftmaxArrays = tuple[Probabilities, Probabilities]

# tokens: of more than these, what is fresh or not needed costs more than avoiding it
_LARGE_VOCAB = 4_096
_BLOCK = 256


def stages(
    sampling: Sampling, input_ids: Sequence[int]
) -> list[tuple[str, Callable[[Scores], Scores]]]:
    """Return the samplers that are on, named, in the order in which they are applied.

    `seen` are the token ids of the text so far, for the repetition penalty.
    """
    applied: list[tuple[str, Callable[[Scores], Scores]]] = []
    if sampling.repeat_penalty != 1:
        applied.append(
            (
                "repeat-penalty",
                lambda scores: _repeat_penalty(scores, input_ids, sampling.repeat_penalty),
            )
        )
    if sampling.temp == 0:
        return [*applied, ("temp", _greedy)]  # one token is left: nothing more to cut
    if sampling.temp != 1:
        applied.append(("temp", lambda scores: scores / np.float32(max(sampling.temp, 1e-20))))
    if sampling.top_k:
        applied.append(("top-k", lambda scores: _top_k(scores, sampling.top_k)))
    if sampling.top_p < 1:
        applied.append(("top-p", lambda scores: _top_p(scores, sampling.top_p)))
    if sampling.min_p > 0:
        applied.append(("min-p", lambda scores: _min_p(scores, sampling.min_p)))
    return applied


def process_logits(logits: Scores, sampling: Sampling, input_ids: Sequence[int]) -> Scores:
    """Return the scores after all samplers; the likeliest token is never cut."""
    for _, stage in stages(sampling, input_ids):
        logits = stage(logits)
    return logits


def softmax(scores: Scores, out: SoftmaxArrays | None = None) -> SoftmaxArrays:
    """Return probabilities and natural logarithms, in float64; the only softmax of a vocabulary.

    `into` is what `arrays` gave, to be filled.
    """
    if out is None:
        probabilities, logs = None, scores.astype(np.float64)
    else:
        probabilities, logs = out
        kept = scores > -np.inf
        if np.count_nonzero(kept) < len(scores) // 2:
            probabilities.fill(0)
            logs.fill(-np.inf)
            probabilities[kept], logs[kept] = softmax(scores[kept])
            return out
        logs[:] = scores
    logs -= logs.max()
    probabilities = np.exp(logs, out=probabilities)
    total = probabilities.sum()
    probabilities /= total
    logs -= np.log(total)
    return probabilities, logs


def make_scratch(vocab_size: int) -> SoftmaxArrays | None:
    """Return room for one `softmax` after the other, where that is faster: large vocabularies."""
    return (np.empty(vocab_size), np.empty(vocab_size)) if vocab_size >= _LARGE_VOCAB else None


def sample_token(probabilities: Probabilities, rng: np.random.Generator) -> int:
    """Draw a token id, using up exactly one number of `rng`."""
    threshold, start = rng.random(), 0
    if len(probabilities) < _LARGE_VOCAB:
        cumulative = probabilities.cumsum()
        threshold *= cumulative[-1]
    else:  # sums of blocks say in which one it is
        blocks = np.add.reduceat(probabilities, np.arange(0, len(probabilities), _BLOCK)).cumsum()
        threshold *= blocks[-1]
        block = min(int(blocks.searchsorted(threshold, side="right")), len(blocks) - 1)
        threshold -= blocks[block - 1] if block else 0.0
        start = block * _BLOCK
        cumulative = probabilities[start : start + _BLOCK].cumsum()
    offset = int(cumulative.searchsorted(threshold, side="right"))
    if offset == len(cumulative):  # what was rounded up must not reach past the last candidate
        return int(probabilities[: start + offset].nonzero()[0][-1])
    return start + offset


def make_rng(seed: int, token_index: int = 0) -> np.random.Generator:
    """Return a seed's random numbers, from the one on that draws a completion's token `place`."""
    bits = np.random.PCG64(seed)
    bits.advance(token_index)
    return np.random.Generator(bits)


def topk_ids(logits: Scores, k: int) -> list[int]:
    """Return the ids of the `top` likeliest tokens, ties by id."""
    candidate_ids = np.flatnonzero(logits >= _kth_largest(logits, k))
    ids: list[int] = candidate_ids[(-logits[candidate_ids]).argsort(kind="stable")][:k].tolist()
    return ids


def rank(logits: Scores, token: int) -> int:
    """Return a token's place among all, 1 being the likeliest; ties by id."""
    token_logit = logits[token]
    return (
        int(
            np.count_nonzero(logits > token_logit) + np.count_nonzero(logits[:token] == token_logit)
        )
        + 1
    )


def entropy(probabilities: Probabilities, logs: Probabilities) -> float:
    """Return −Σ p·log2 p, in bits, of probabilities above 0 and their natural logarithms."""
    # Not `@`: numpy gives that to a library whose threads go on looking for work while the decoder
    # needs every core.
    return abs(float(np.einsum("i,i", probabilities, logs))) / LN2


def _greedy(scores: Scores) -> Scores:
    masked = np.full_like(scores, -np.inf)
    best = scores.argmax()
    masked[best] = scores[best]
    return masked


def _repeat_penalty(scores: Scores, input_ids: Sequence[int], penalty: float) -> Scores:
    scores = scores.copy()
    ids = np.unique(np.asarray(input_ids, dtype=np.int64))
    id_scores = scores[ids]
    scores[ids] = np.where(
        id_scores < 0, id_scores * np.float32(penalty), id_scores / np.float32(penalty)
    )
    return scores


def _top_k(scores: Scores, k: int) -> Scores:
    if k >= len(scores):
        return scores
    # ties with the k-th stay
    return np.where(scores < _kth_largest(scores, k), np.float32(-np.inf), scores)


def _kth_largest(scores: Scores, k: int) -> np.float32:
    """Return the least of the `top` highest scores."""
    k = min(k, len(scores))
    kth_score: np.float32 = np.partition(scores, -k)[-k]
    return kth_score


def _top_p(scores: Scores, p: float) -> Scores:
    probabilities, max_dropped = softmax(scores)[0], np.float32(1 - p)
    below_block = scores < _kth_largest(scores, _LARGE_VOCAB)
    dropped_mass = probabilities.sum(where=below_block)
    if dropped_mass > max_dropped:  # then there is nothing for it but to sort them all
        below_block[:], dropped_mass = False, 0.0
    remaining_ids = np.flatnonzero(~below_block)
    order = remaining_ids[scores[remaining_ids].argsort(kind="stable")]  # least likely first
    sorted_probs = probabilities[order].astype(np.float32)
    sorted_probs[0] += dropped_mass
    dropped = sorted_probs.cumsum() <= max_dropped
    dropped[-1] = False  # the likeliest always stays
    scores = np.where(below_block, np.float32(-np.inf), scores)
    scores[order[dropped]] = -np.inf
    return scores


def _min_p(scores: Scores, p: float) -> Scores:
    probabilities = softmax(scores)[0].astype(np.float32)
    return np.where(
        probabilities < np.float32(p) * probabilities.max(), np.float32(-np.inf), scores
    )
