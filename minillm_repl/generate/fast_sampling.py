"""What `sampling` defines, in less time for a large vocabulary.

There are two shortcuts. Tokens that a sampler has filtered out, or that are too unlikely to matter,
are left out of the arithmetic. Arrays are used again for each token, because fresh memory of this
size costs more than the arithmetic in it. Tests hold each function to its plain definition.
"""

from collections.abc import Callable, Sequence

import numpy as np

from minillm_repl.generate import Sampling
from minillm_repl.generate import sampling as plain
from minillm_repl.generate.sampling import (
    NOTHING_ELSE,
    Draw,
    Probabilities,
    Scores,
    Situation,
    kth_largest,
    toss,
)

LARGE_VOCAB = 4_096  # tokens; below, the shortcuts cost more than they save
# These stages look at ids: their scores stay where they are.
_NEEDS_TEXT = {
    "format", "ban", "bias", "repeat-penalty", "presence-penalty", "frequency-penalty", "dry",
}  # fmt: skip
_BLOCK = 256  # tokens; about the square root of a large vocabulary, so that both sums are short

Scratch = tuple[Probabilities, Probabilities]


class FastDraw:
    """`sampling.draw` for a vocabulary of LARGE_VOCAB tokens or more."""

    def __init__(self, vocab_size: int) -> None:
        self._scratch = make_scratch(vocab_size), make_scratch(vocab_size)

    def __call__(
        self,
        logits: Scores,
        sampling: Sampling,
        input_ids: Sequence[int],
        rng: np.random.Generator,
        situation: Situation = NOTHING_ELSE,
    ) -> Draw:
        """Draw the next token from its logits (vocab_size,)."""
        number, xtc_applies = toss(rng.random(), sampling.xtc)
        situation = situation._replace(xtc_applies=xtc_applies)
        scores = process_logits(logits, sampling, input_ids, situation)  # (vocab_size,)
        model = softmax(logits, self._scratch[0])
        sampled = model if scores is logits else softmax(scores, self._scratch[1])
        return Draw(sample_token(sampled[0], number), scores, model, sampled)


def make_scratch(vocab_size: int) -> Scratch:
    """Return the two arrays (vocab_size,) that `softmax` fills."""
    return np.empty(vocab_size), np.empty(vocab_size)


def process_logits(
    logits: Scores,
    sampling: Sampling,
    input_ids: Sequence[int],
    situation: Situation = NOTHING_ELSE,
) -> Scores:
    """Return the scores after all samplers: (vocab_size,)."""
    for name, stage in plain.stages(sampling, input_ids, situation):
        if name in _NEEDS_TEXT:
            logits = stage(logits)
        elif name == "top-p":
            logits = _among_kept(logits, lambda scores: _top_p(scores, sampling.top_p))
        else:
            logits = _among_kept(logits, stage)
    return logits


def _among_kept(scores: Scores, stage: Callable[[Scores], Scores]) -> Scores:
    """Do a stage that looks at nothing but the scores; where few are left, on these alone."""
    kept = np.flatnonzero(scores > -np.inf)
    if len(kept) >= len(scores) // 2:
        return stage(scores)
    result = np.full_like(scores, -np.inf)
    result[kept] = stage(scores[kept])
    return result


def softmax(scores: Scores, scratch: Scratch) -> tuple[Probabilities, Probabilities]:
    """Return the probabilities and their natural logarithms in the arrays of `scratch`."""
    probabilities, logs = scratch
    kept = scores > -np.inf
    if np.count_nonzero(kept) < len(scores) // 2:
        probabilities.fill(0)
        logs.fill(-np.inf)
        probabilities[kept], logs[kept] = plain.softmax(scores[kept])
        return scratch
    logs[:] = scores
    logs -= logs.max()
    np.exp(logs, out=probabilities)
    total = probabilities.sum()
    probabilities /= total
    logs -= np.log(total)
    return scratch


def sample_token(probabilities: Probabilities, number: float) -> int:
    """Return the token id that a random number, 0 to 1, selects."""
    if len(probabilities) < LARGE_VOCAB:
        return plain.sample_token(probabilities, number)
    # The sums of blocks tell in which one the token is: only that block is summed token by token.
    starts = np.arange(0, len(probabilities), _BLOCK)
    blocks = np.add.reduceat(probabilities, starts).cumsum()  # (n_blocks,)
    threshold = number * blocks[-1]
    block = min(int(blocks.searchsorted(threshold, side="right")), len(blocks) - 1)
    threshold -= blocks[block - 1] if block else 0.0
    start = block * _BLOCK
    cumulative = probabilities[start : start + _BLOCK].cumsum()  # (_BLOCK or fewer,)
    offset = int(cumulative.searchsorted(threshold, side="right"))
    if offset == len(cumulative):  # Rounding up must not reach past the last candidate.
        return int(probabilities[: start + offset].nonzero()[0][-1])
    return start + offset


def _top_p(scores: Scores, p: float) -> Scores:
    """Keep what `sampling.top_p` keeps.

    Only the most likely tokens are sorted if the others have too little probability to be kept.
    """
    if len(scores) <= LARGE_VOCAB:
        return plain.top_p(scores, p)
    probabilities, max_dropped = plain.softmax(scores)[0], np.float32(1 - p)
    below = scores < kth_largest(scores, LARGE_VOCAB)  # (vocab_size,)
    dropped_mass = probabilities.sum(where=below)
    if dropped_mass > max_dropped:
        return plain.top_p(scores, p)  # Some of them stay: all must be sorted.
    others = np.flatnonzero(~below)
    order = others[scores[others].argsort(kind="stable")]  # ids, least likely first
    sorted_probs = probabilities[order].astype(np.float32)
    sorted_probs[0] += dropped_mass
    dropped = sorted_probs.cumsum() <= max_dropped
    dropped[-1] = False
    scores = np.where(below, np.float32(-np.inf), scores)
    scores[order[dropped]] = -np.inf
    return scores
