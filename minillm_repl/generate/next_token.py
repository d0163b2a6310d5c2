"""What could come next, asked in several ways: stage by stage, by temperature, of one
continuation, of several.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, prod

import numpy as np

from minillm_repl.errors import UserError
from minillm_repl.generate.decoder import Decoder, never_interrupted, prefill
from minillm_repl.generate.detokenizer import text_token_ids
from minillm_repl.generate.events import Finished, Step
from minillm_repl.generate.generate import check_finite, generate
from minillm_repl.generate.options import GenerationConfig, Sampling
from minillm_repl.generate.sampling import (
    LN2,
    Probabilities,
    Scores,
    entropy,
    make_rng,
    process_logits,
    rank,
    softmax,
    stages,
    topk_ids,
)
from minillm_repl.generate.views import (
    Branch,
    BranchesView,
    ContinuationToken,
    ProbView,
    SamplerCandidate,
    SamplerView,
    Stage,
    SweepView,
    TemperatureCandidate,
)
from minillm_repl.language import _
from minillm_repl.settings import format_value, specs, value_of
from minillm_repl.tokenizer.base import Token, Tokenizer

_TEMPERATURES = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)


def next_logits(
    decoder: Decoder, ids: Sequence[int], interrupted: Callable[[], bool] = never_interrupted
) -> Scores:
    """Return the logits after a text of one token or more.

    Raises UserError if stopped, or if they are not numbers.
    """
    logits = prefill(decoder, ids, interrupted)
    if logits is None:
        raise UserError(_("stopped"))
    return check_finite(logits, len(ids))


def sampler_view(
    logits: Scores, sampling: Sampling, ids: Sequence[int], tokenizer: Tokenizer, k: int
) -> SamplerView:
    """Return what each sampler that is on makes of the distribution after `ids`."""
    columns = [("model", logits)]
    for name, sampler in stages(sampling, ids):
        label = f"{name} {format_value(specs(sampling)[name], value_of(sampling, name))}"
        columns.append((label, sampler(columns[-1][1])))
    kept_counts = [int(np.isfinite(scores).sum()) for _, scores in columns]
    probabilities = [softmax(scores)[0] for _, scores in columns]
    return SamplerView(
        Token.from_id(tokenizer, ids[-1]),
        tuple(
            Stage(name, n_kept, n_before - n_kept, _entropy(sampling_probs))
            for (name, _), n_kept, n_before, sampling_probs in zip(
                columns, kept_counts, [len(logits), *kept_counts], probabilities, strict=False
            )
        ),
        tuple(
            SamplerCandidate(
                Token.from_id(tokenizer, token),
                float(logits[token]),
                token in ids,
                tuple(
                    _kept_probability(scores, drawn, token)
                    for (_, scores), drawn in zip(columns, probabilities, strict=True)
                ),
            )
            for token in topk_ids(logits, k)
        ),
    )


def sweep_view(
    logits: Scores, sampling: Sampling, ids: Sequence[int], tokenizer: Tokenizer, k: int
) -> SweepView:
    """Return what is drawn from after `ids` at several temperatures, the set one among them."""
    temps = tuple(sorted({*_TEMPERATURES, sampling.temp}))
    columns = [process_logits(logits, replace(sampling, temp=temp), ids) for temp in temps]
    distributions = [softmax(scores)[0] for scores in columns]
    candidates = tuple(
        TemperatureCandidate(
            Token.from_id(tokenizer, token),
            tuple(
                _kept_probability(scores, probabilities, token)
                for scores, probabilities in zip(columns, distributions, strict=True)
            ),
        )
        for token in topk_ids(logits, k)
    )
    return SweepView(
        Token.from_id(tokenizer, ids[-1]),
        temps,
        sampling.temp,
        tuple(map(_entropy, distributions)),
        candidates,
    )


def prob_view(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    continuation_ids: Sequence[int],
    interrupted: Callable[[], bool],
) -> ProbView:
    """Return how likely `more` is after `ids`, token by token. Raises UserError if stopped."""
    prefix_ids, continuation, total = list(ids), [], 0.0
    for token in continuation_ids:
        logits = next_logits(decoder, prefix_ids, interrupted)
        _, log_probabilities = softmax(logits)
        top_token = topk_ids(logits, 1)[0]
        continuation.append(
            ContinuationToken(
                Token.from_id(tokenizer, token), exp(log_probabilities[token]), rank(logits, token),
                Token.from_id(tokenizer, top_token), exp(log_probabilities[top_token]),
            )
        )  # fmt: skip
        total += float(log_probabilities[token])
        prefix_ids.append(token)
    return ProbView(
        Token.from_id(tokenizer, ids[-1]), tuple(continuation), exp(total), abs(total) / LN2
    )


def branches_view(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    config: GenerationConfig,
    seed: int,
    n_branches: int,
    interrupted: Callable[[], bool] = never_interrupted,
) -> BranchesView:
    """Return several continuations of `ids`, drawn with the seeds `seed`, `seed` + 1, ...

    After an interrupt, it has those made so far.
    """
    branches = []
    for branch_seed in range(seed, seed + n_branches):
        rng = make_rng(branch_seed)
        events = list(generate(decoder, tokenizer, ids, config, rng, interrupted))
        steps = [event for event in events if isinstance(event, Step)]
        finished = events[-1]
        assert isinstance(finished, Finished)
        branches.append(_branch(tokenizer, steps, finished, config.stop))
        if finished.reason == "interrupt":
            break
    return BranchesView(Token.from_id(tokenizer, ids[-1]), seed, tuple(branches))


def _kept_probability(scores: Scores, sampling_probs: Probabilities, token: int) -> float | None:
    return float(sampling_probs[token]) if np.isfinite(scores[token]) else None


def _entropy(probabilities: Probabilities) -> float:
    positive = probabilities[probabilities > 0]
    return entropy(positive, np.log(positive))


def _branch(
    tokenizer: Tokenizer, steps: Sequence[Step], finished: Finished, stop: Sequence[str]
) -> Branch:
    probs = tuple(step.model_prob for step in steps)
    n_text_tokens = len(text_token_ids(tokenizer, [step.id for step in steps], finished, stop))
    tokens = tuple(Token.from_id(tokenizer, step.id) for step in steps)
    return Branch(tokens, probs, prod(probs), finished.reason, n_text_tokens)
