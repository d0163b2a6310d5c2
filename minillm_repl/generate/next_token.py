"""What could come next, asked in several ways: stage by stage, by temperature, of one
continuation, of several.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import exp, prod

import numpy as np

from minillm_repl.errors import UserError
from minillm_repl.generate.decoder import Decoder, read
from minillm_repl.generate.events import Finished, Step
from minillm_repl.generate.generate import finite, generate, kept, never
from minillm_repl.generate.options import Sampling
from minillm_repl.generate.sampling import (
    LN2,
    Probabilities,
    Scores,
    entropy,
    likeliest,
    numbers,
    process,
    rank,
    softmax,
    stages,
)
from minillm_repl.generate.views import (
    Branch,
    BranchesView,
    Chance,
    ProbView,
    SamplerView,
    Stage,
    StagedCandidate,
    SweepView,
    Tempered,
)
from minillm_repl.language import _
from minillm_repl.settings import show, specs, value_of
from minillm_repl.tokenizer.base import Token, Tokenizer

_TEMPS = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)


def next_logits(
    decoder: Decoder, ids: Sequence[int], interrupted: Callable[[], bool] = never
) -> Scores:
    """Return the logits after a text of one token or more.

    Raises UserError if stopped, or if they are not numbers.
    """
    logits = read(decoder, ids, interrupted)
    if logits is None:
        raise UserError(_("stopped"))
    return finite(logits, len(ids))


def sampler_view(
    logits: Scores, sampling: Sampling, ids: Sequence[int], tokenizer: Tokenizer, top: int
) -> SamplerView:
    """Return what each sampler that is on makes of the distribution after `ids`."""
    columns = [("model", logits)]
    for name, sampler in stages(sampling, ids):
        said = f"{name} {show(specs(sampling)[name], value_of(sampling, name))}"
        columns.append((said, sampler(columns[-1][1])))
    kept = [int(np.isfinite(scores).sum()) for _, scores in columns]
    probabilities = [softmax(scores)[0] for _, scores in columns]
    return SamplerView(
        Token.of(tokenizer, ids[-1]),
        tuple(
            Stage(name, left, before - left, _entropy(drawn))
            for (name, _), left, before, drawn in zip(
                columns, kept, [len(logits), *kept], probabilities, strict=False
            )
        ),
        tuple(
            StagedCandidate(
                Token.of(tokenizer, each),
                float(logits[each]),
                each in ids,
                tuple(
                    _chance(scores, drawn, each)
                    for (_, scores), drawn in zip(columns, probabilities, strict=True)
                ),
            )
            for each in likeliest(logits, top)
        ),
    )


def sweep_view(
    logits: Scores, sampling: Sampling, ids: Sequence[int], tokenizer: Tokenizer, top: int
) -> SweepView:
    """Return what would be drawn from after `ids` at several temperatures, the one that is set
    among them.
    """
    temps = tuple(sorted({*_TEMPS, sampling.temp}))
    columns = [process(logits, replace(sampling, temp=temp), ids) for temp in temps]
    drawn = [softmax(scores)[0] for scores in columns]
    candidates = tuple(
        Tempered(
            Token.of(tokenizer, each),
            tuple(
                _chance(scores, probabilities, each)
                for scores, probabilities in zip(columns, drawn, strict=True)
            ),
        )
        for each in likeliest(logits, top)
    )
    return SweepView(
        Token.of(tokenizer, ids[-1]), temps, sampling.temp, tuple(map(_entropy, drawn)), candidates
    )


def prob_view(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    more: Sequence[int],
    interrupted: Callable[[], bool],
) -> ProbView:
    """Return how likely `more` is after `ids`, token by token. Raises UserError if stopped."""
    text, chances, total = list(ids), [], 0.0
    for token in more:
        logits = next_logits(decoder, text, interrupted)
        _, log_probabilities = softmax(logits)
        best = likeliest(logits, 1)[0]
        chances.append(
            Chance(
                Token.of(tokenizer, token), exp(log_probabilities[token]), rank(logits, token),
                Token.of(tokenizer, best), exp(log_probabilities[best]),
            )
        )  # fmt: skip
        total += float(log_probabilities[token])
        text.append(token)
    return ProbView(Token.of(tokenizer, ids[-1]), tuple(chances), exp(total), abs(total) / LN2)


def branches_view(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    sampling: Sampling,
    seed: int,
    ways: int,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    end: Collection[int] = (),
    interrupted: Callable[[], bool] = never,
) -> BranchesView:
    """Return `ways` continuations of `ids` by at most `max_tokens` tokens each.

    Stopped, it has those made so far.
    """
    branches = []
    for way in range(ways):
        steps: list[Step] = []
        finished = Finished("length", "", len(ids), 0, 0.0, 0.0)
        for event in generate(
            decoder, tokenizer, ids, sampling, numbers(seed + way),
            max_tokens=max_tokens, stop=stop, end=end, interrupted=interrupted,
        ):  # fmt: skip
            if isinstance(event, Step):
                steps.append(event)
            else:
                finished = event
        branches.append(_branch(tokenizer, steps, finished, stop))
        if finished.reason == "interrupt":
            break
    return BranchesView(Token.of(tokenizer, ids[-1]), seed, tuple(branches))


def _chance(scores: Scores, drawn: Probabilities, token: int) -> float | None:
    return float(drawn[token]) if np.isfinite(scores[token]) else None


def _entropy(probabilities: Probabilities) -> float:
    some = probabilities[probabilities > 0]
    return entropy(some, np.log(some))


def _branch(
    tokenizer: Tokenizer, steps: Sequence[Step], finished: Finished, stop: Sequence[str]
) -> Branch:
    probs = tuple(step.model_prob for step in steps)
    said = len(kept(tokenizer, [step.id for step in steps], finished, stop))
    tokens = tuple(Token.of(tokenizer, step.id) for step in steps)
    return Branch(tokens, probs, prod(probs), finished.reason, said)
