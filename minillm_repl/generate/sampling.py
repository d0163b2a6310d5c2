"""From logits to the next token: a small function for each sampler, in the order of `transformers`.

Format → ban → bias → penalties → DRY → top-nσ → temperature → top-k → top-p → min-p → typical-p →
XTC → Mirostat → softmax → draw. Scores are float32 arrays (vocab_size,), as there, so that its
processors can be the oracle. The score of a token that a sampler filters out becomes −inf.
`fast_sampling` does the same for a large vocabulary in less time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate import NO_RULES, Sampling, TokenRules
from minillm_repl.generate.options import SAMPLER_ORDER
from minillm_repl.generate.penalties import (
    FILTERED,
    ban,
    bias,
    dry,
    frequency_penalty,
    presence_penalty,
    repeat_penalty,
)

LN2 = float(np.log(2))
Scores = NDArray[np.float32]
Probabilities = NDArray[np.float64]
Mask = NDArray[np.bool_]
Stage = tuple[str, Callable[[Scores], Scores]]

_MIN_TEMPERATURE = 1e-20  # float32 has nothing smaller to divide by that keeps scores finite


class Draw(NamedTuple):
    """A token, and the distributions that it was drawn from; valid until the next draw."""

    token: int
    scores: Scores  # after the samplers
    model: tuple[Probabilities, Probabilities]  # the model's softmax, and its natural logarithms
    sampled: tuple[Probabilities, Probabilities]  # the same of the scores


class Situation(NamedTuple):
    """What a draw depends on besides the logits, the samplers and the text so far."""

    rules: TokenRules = NO_RULES
    answer_start: int = 0  # where the answer begins in the text so far
    allowed: Mask | None = None  # (vocab_size,) the tokens with which the format can go on
    mu: float | None = None  # bits; the limit of Mirostat, which moves with each token
    xtc_applies: bool = True  # how the coin of XTC fell


NOTHING_ELSE = Situation()


def draw(
    logits: Scores,
    sampling: Sampling,
    input_ids: Sequence[int],
    rng: np.random.Generator,
    situation: Situation = NOTHING_ELSE,
) -> Draw:
    """Draw the next token from its logits (vocab_size,); this takes exactly one number of `rng`."""
    number, xtc_applies = toss(rng.random(), sampling.xtc)
    situation = situation._replace(xtc_applies=xtc_applies)
    scores = process_logits(logits, sampling, input_ids, situation)  # (vocab_size,)
    model = softmax(logits)
    sampled = model if scores is logits else softmax(scores)  # no sampler is on: the same
    return Draw(sample_token(sampled[0], number), scores, model, sampled)


def stages(
    sampling: Sampling, input_ids: Sequence[int], situation: Situation = NOTHING_ELSE
) -> list[Stage]:
    """Return the samplers that are on, by the names of their settings, in their order.

    `input_ids` are the tokens of the text so far, for the penalties.
    """
    s, rules, allowed = sampling, situation.rules, situation.allowed
    start = situation.answer_start if s.penalise == "answer" else 0
    seen = input_ids[start:] if start else input_ids
    on: list[Stage] = []
    if allowed is not None:
        on.append(("format", lambda scores: keep(scores, allowed)))
    if rules.banned:
        on.append(("ban", lambda scores: ban(scores, rules.banned)))
    if rules.biases:
        on.append(("bias", lambda scores: bias(scores, rules.biases)))
    samplers: dict[str, tuple[bool, Callable[[Scores], Scores]]] = {
        "repeat-penalty": (
            s.repeat_penalty != 1, lambda x: repeat_penalty(x, seen, s.repeat_penalty),
        ),
        "presence-penalty": (
            s.presence_penalty != 0, lambda x: presence_penalty(x, seen, s.presence_penalty),
        ),
        "frequency-penalty": (
            s.frequency_penalty != 0, lambda x: frequency_penalty(x, seen, s.frequency_penalty),
        ),
        "dry": (s.dry > 0, lambda x: dry(x, seen, s, rules.breakers)),
        "top-n-sigma": (s.top_n_sigma > 0, lambda x: top_n_sigma(x, s.top_n_sigma)),
        "temp": (s.temp != 1, lambda x: temperature(x, s.temp) if s.temp else greedy(x)),
        "top-k": (s.top_k > 0, lambda x: top_k(x, s.top_k)),
        "top-p": (s.top_p < 1, lambda x: top_p(x, s.top_p)),
        "min-p": (s.min_p > 0, lambda x: min_p(x, s.min_p)),
        "typical-p": (s.typical_p < 1, lambda x: typical_p(x, s.typical_p)),
        "xtc": (s.xtc > 0 and situation.xtc_applies, lambda x: xtc(x, s.xtc_threshold)),
    }  # fmt: skip
    for name in dict.fromkeys((*s.sampler_order, *SAMPLER_ORDER)):
        is_on, stage = samplers[name]
        if is_on:
            on.append((name, stage))
        if name == "temp" and s.temp == 0:
            return on  # One token is left: there is nothing more to filter.
    if s.mirostat > 0:
        mu = 2 * s.mirostat if situation.mu is None else situation.mu
        on.append(("mirostat", lambda scores: mirostat(scores, mu)))
    return on


def process_logits(
    logits: Scores,
    sampling: Sampling,
    input_ids: Sequence[int],
    situation: Situation = NOTHING_ELSE,
) -> Scores:
    """Return the scores after all samplers; one token at least always stays."""
    for _name, stage in stages(sampling, input_ids, situation):
        logits = stage(logits)  # (vocab_size,)
    return logits


# -- the samplers


def keep(scores: Scores, allowed: Mask) -> Scores:
    """Keep the tokens with which the format can go on."""
    kept = scores.copy()  # in less time than `where` takes
    kept[~allowed] = FILTERED
    return kept


def greedy(scores: Scores) -> Scores:
    """Keep the most likely token only: the limit of a temperature that goes to 0."""
    best = scores.argmax()
    only = np.full_like(scores, FILTERED)
    only[best] = scores[best]
    return only


def temperature(scores: Scores, temp: float) -> Scores:
    """Make the distribution sharper (below 1) or flatter (above 1)."""
    return scores / np.float32(max(temp, _MIN_TEMPERATURE))


def top_n_sigma(scores: Scores, n: float) -> Scores:
    """Keep the tokens whose score is within n standard deviations of the highest one."""
    left = scores[scores > FILTERED]
    return np.where(scores < left.max() - np.float32(n) * left.std(), FILTERED, scores)


def top_k(scores: Scores, k: int) -> Scores:
    """Keep the k most likely tokens, and those as likely as the k-th."""
    return np.where(scores < kth_largest(scores, k), FILTERED, scores)


def top_p(scores: Scores, p: float) -> Scores:
    """Keep the smallest set of most likely tokens whose probabilities sum to p or more."""
    order = scores.argsort(kind="stable")  # (vocab_size,) ids, least likely first
    cumulative = softmax(scores)[0][order].astype(np.float32).cumsum()  # (vocab_size,)
    dropped = cumulative <= np.float32(1 - p)
    dropped[-1] = False
    scores = scores.copy()
    scores[order[dropped]] = FILTERED
    return scores


def min_p(scores: Scores, p: float) -> Scores:
    """Keep the tokens with at least p times the probability of the most likely one."""
    probabilities = softmax(scores)[0].astype(np.float32)
    return np.where(probabilities < np.float32(p) * probabilities.max(), FILTERED, scores)


def typical_p(scores: Scores, p: float) -> Scores:
    """Keep the tokens whose surprisal is nearest to the entropy, until they sum to p or more."""
    probabilities, logs = softmax(scores)
    left = probabilities > 0
    average = -(probabilities[left] * logs[left]).sum()  # nats, the entropy
    distances = np.abs(-logs - average).astype(np.float32)  # (vocab_size,)
    order = distances.argsort(kind="stable")
    cumulative = probabilities[order].astype(np.float32).cumsum()
    last = min(np.count_nonzero(cumulative < np.float32(p)), len(scores) - 1)
    return np.where(distances > distances[order[last]], FILTERED, scores)


def xtc(scores: Scores, threshold: float) -> Scores:
    """Drop the tokens with a probability of `threshold` or more, except the least likely one."""
    probabilities = softmax(scores)[0]
    top = np.flatnonzero((probabilities >= threshold) & (scores > FILTERED))
    if len(top) < 2:
        return scores
    scores = scores.copy()
    # Of equals the one with the higher id stays, as if they were sorted.
    stays = top[len(top) - 1 - scores[top][::-1].argmin()]
    scores[top[top != stays]] = FILTERED
    return scores


def mirostat(scores: Scores, mu: float) -> Scores:
    """Keep the tokens with a surprisal of at most mu bits, and the most likely one."""
    dropped = -softmax(scores)[1] > mu * LN2  # (vocab_size,)
    dropped[scores.argmax()] = False
    return np.where(dropped, FILTERED, scores)


def next_mu(mu: float | None, sampling: Sampling, prob: float) -> float:
    """Return Mirostat's limit after a token that was drawn with this probability."""
    mu = 2 * sampling.mirostat if mu is None else mu
    return mu - sampling.mirostat_rate * (-float(np.log(prob)) / LN2 - sampling.mirostat)


# -- from scores to a token


def softmax(scores: Scores) -> tuple[Probabilities, Probabilities]:
    """Return the probabilities and their natural logarithms, in float64."""
    logs = scores.astype(np.float64)
    logs -= logs.max()  # exp must not overflow
    probabilities = np.exp(logs)
    total = probabilities.sum()
    probabilities /= total
    logs -= np.log(total)
    return probabilities, logs


def toss(number: float, probability: float) -> tuple[float, bool]:
    """Toss a coin with a random number, 0 to 1; return what is left of the number, and the side.

    What is left is uniform from 0 to 1 again, whatever the side is: so one number of the generator
    is enough for a token.
    """
    if number < probability:
        return number / probability, True
    return (number - probability) / (1 - probability), False


def sample_token(probabilities: Probabilities, number: float) -> int:
    """Return the token id that a random number, 0 to 1, selects."""
    cumulative = probabilities.cumsum()  # (vocab_size,), up to 1
    token = int(cumulative.searchsorted(number * cumulative[-1], side="right"))
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
