"""The token loop: read the prompt, then predict, sample and append, one token after the other."""

from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter
from typing import Literal

import numpy as np

from minillm_repl.errors import UserError
from minillm_repl.generate import (
    Candidate,
    Decoder,
    Finished,
    FormatMask,
    GenerationConfig,
    GenerationEvent,
    Prefill,
    Reason,
    Step,
    never_interrupted,
)
from minillm_repl.generate.detokenizer import Detokenizer
from minillm_repl.generate.fast_sampling import LARGE_VOCAB, FastDraw
from minillm_repl.generate.sampling import (
    Draw,
    Mask,
    Scores,
    Situation,
    draw,
    entropy,
    next_mu,
    rank,
    topk_ids,
)
from minillm_repl.language import _
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.tokenizer.truncation import truncate


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    config: GenerationConfig,
    rng: np.random.Generator,
    interrupted: Callable[[], bool] = never_interrupted,
) -> Iterator[GenerationEvent]:
    """Continue `ids` (one or more); each token takes one number of `rng`.

    Yields `Prefill` between two chunks of a long prompt, a `Step` for each token, and `Finished`;
    between them `interrupted` is asked. Raises UserError if the logits are not finite.
    """
    # A decoder of a server that samples yields the events itself.
    remote = getattr(decoder, "generate", None)
    elsewhere = remote and remote(ids, config, rng, interrupted)
    if elsewhere:
        yield from elsewhere
        return
    ids, prompt_tokens = list(ids), len(ids)  # a copy, which grows
    detokenizer = Detokenizer(config.stop, tokenizer.special_names if config.stop else ())
    start = prompt_tokens if config.answer_start is None else config.answer_start
    sampler = StepSampler(tokenizer, config, rng, detokenizer, start, ids[start:])
    prompt_seconds, started = 0.0, perf_counter()
    reason: Reason = sampler.ended or "length"
    for index in range(0 if sampler.ended else config.max_tokens):
        # A chat ends here instead of losing its first turns.
        if not config.context_shift and len(ids) > decoder.context_length:
            reason = "context"
            break
        if interrupted():
            reason = "interrupt"
            break
        if index == 0:
            logits, prompt_seconds = yield from read_prompt(decoder, ids, interrupted)
            started = perf_counter()  # the speed of generation leaves the prompt out
        else:
            # Usually one token is read. When the window moves, `prefill` reads all of it again.
            logits = prefill(decoder, ids, interrupted)
        if logits is None:
            reason = "interrupt"
            break
        step = sampler.step(index, check_finite(logits, len(ids)), ids)
        ids.append(step.id)
        yield step
        if detokenizer.stopped or step.id in config.eos_token_ids:
            reason = "stop" if detokenizer.stopped else "end"
            break
        if sampler.ended:
            reason = sampler.ended
            break
    yield Finished(
        reason=reason,
        text=detokenizer.finish(),
        format_complete=sampler.is_complete(detokenizer),
        prompt_tokens=prompt_tokens,
        tokens=len(ids) - prompt_tokens,
        prompt_seconds=prompt_seconds,
        seconds=perf_counter() - started,
    )


def check_finite(logits: Scores, tokens: int) -> Scores:
    """Return the logits after that many tokens. Raises UserError if they are not finite."""
    if not np.isfinite(logits).all():
        raise UserError(
            _(
                "the logits at token {tokens} are not finite: a weight is not finite, or a "
                "result overflows float32",
                tokens=tokens,
            )
        )
    return logits


def read_prompt(
    decoder: Decoder, ids: Sequence[int], interrupted: Callable[[], bool] = never_interrupted
) -> Generator[Prefill, None, tuple[Scores | None, float]]:
    """Make the cache hold exactly what the model sees of `ids`; yield the progress between chunks.

    Returns the logits after it, and the seconds that the model took. The first tokens that the
    cache shares with `ids` are not computed again. The logits are None if `interrupted`, which is
    asked between two chunks.
    """
    window_ids, n_cached = common_prefix(decoder, ids)
    decoder.trim(n_cached)
    seconds = 0.0
    for start in range(n_cached, len(window_ids), decoder.prefill_chunk):
        if start > n_cached:
            yield Prefill(start, len(window_ids))
            if interrupted():
                return None, seconds
        chunk, started = window_ids[start : start + decoder.prefill_chunk], perf_counter()
        logits = decoder.decode(chunk[0]) if start and len(chunk) == 1 else decoder.prefill(chunk)
        seconds += perf_counter() - started
    return logits, seconds


def common_prefix(decoder: Decoder, ids: Sequence[int]) -> tuple[list[int], int]:
    """Return the tokens of `ids` that the model sees, and how many of them the cache holds.

    When the window moves, all positions shift, and nothing is shared. The last token always counts
    as missing, because its logits are needed.
    """
    window_ids, cached_ids = list(ids), decoder.ids
    if len(ids) > decoder.context_length:
        window_ids = list(truncate(ids, decoder.context_length, decoder.bos_token_id).ids)
    most = min(len(window_ids) - 1, len(cached_ids))
    if window_ids[:most] == cached_ids[:most]:  # one comparison of lists is the usual case
        return window_ids, most
    differs = (place for place in range(most) if window_ids[place] != cached_ids[place])
    return window_ids, next(differs)


def prefill(
    decoder: Decoder, ids: Sequence[int], interrupted: Callable[[], bool] = never_interrupted
) -> Scores | None:
    """Do what `read_prompt` does, without telling of it; return the logits."""
    chunks = read_prompt(decoder, ids, interrupted)
    while True:
        try:
            next(chunks)
        except StopIteration as done:
            logits: Scores | None = done.value[0]
            return logits


def format_mask(allowed: Mask, drawn: Draw) -> FormatMask:
    """Return what a format allows (vocab_size,) of the model's distribution."""
    mass = float(np.add.reduce(drawn.model[0], where=allowed))
    return FormatMask(allowed=int(np.count_nonzero(allowed)), mass=min(mass, 1.0))


class StepSampler:
    """Draws one token after the other, and describes each as a `Step`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: GenerationConfig,
        rng: np.random.Generator,
        detokenizer: Detokenizer,
        answer_start: int,
        answer: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._config, self._rng = tokenizer, config, rng
        self._detokenizer = detokenizer
        self._draw: Callable[..., Draw] | None = None  # chosen by the first logits
        self._situation = Situation(config.rules, answer_start, mu=config.mu)
        constraint = config.rules.constraint
        self._format = constraint.start(answer) if constraint else None

    @property
    def ended(self) -> Literal["", "format", "stuck"]:
        """Why no token can follow: the format is complete, or the vocabulary cannot go on."""
        return self._format.ended if self._format else ""

    def is_complete(self, detokenizer: Detokenizer) -> bool | None:
        """Return whether the answer obeys its format to the end; None without a format."""
        # What is before a stop string may be less than a whole.
        return (
            None if self._format is None else self._format.is_complete and not detokenizer.stopped
        )

    def step(
        self, index: int, logits: Scores, ids: Sequence[int], forced: int | None = None
    ) -> Step:
        """Draw the token after `ids`, whose logits these are: (vocab_size,); or take `forced`."""
        if self._draw is None:
            self._draw = draw if len(logits) < LARGE_VOCAB else FastDraw(len(logits))
        sampling = self._config.sampling
        allowed = self._format.allowed if self._format else None
        situation = self._situation._replace(allowed=allowed)
        drawn = self._draw(logits, sampling, ids, self._rng, situation)
        drawn = drawn if forced is None else drawn._replace(token=forced)
        token = drawn.token
        if sampling.mirostat and forced is None:
            mu = next_mu(self._situation.mu, sampling, float(drawn.sampled[0][token]))
            self._situation = self._situation._replace(mu=mu)
        is_end = token in self._config.eos_token_ids
        if self._format and not is_end:
            self._format.advance(token)
        token_bytes = self._tokenizer.token_bytes(token)
        return Step(
            index=index,
            id=token,
            text=self._detokenizer.push(
                b"" if is_end else token_bytes, self._tokenizer.special_name(token)
            ),
            bytes=tuple(token_bytes),
            prob=float(drawn.sampled[0][token]),
            logprob=float(drawn.sampled[1][token]),
            model_prob=float(drawn.model[0][token]),
            rank=rank(logits, token),
            entropy=entropy(*drawn.model),
            top=self._candidates(logits, drawn),
            format=None if allowed is None else format_mask(allowed, drawn),
        )

    def _candidates(self, logits: Scores, drawn: Draw) -> tuple[Candidate, ...]:
        """Return the most likely tokens of the model, in the order of `Step.rank`.

        The drawn token is last if it is less likely than these.
        """
        if not self._config.n_candidates:
            return ()
        candidates = topk_ids(logits, self._config.n_candidates)
        if drawn.token not in candidates:
            candidates.append(drawn.token)
        tokenizer = self._tokenizer
        candidate_bytes = [tokenizer.token_bytes(candidate) for candidate in candidates]
        return tuple(
            Candidate(
                id=candidate,
                text=token_bytes.decode("utf-8", "replace") or tokenizer.special_name(candidate),
                bytes=tuple(token_bytes),
                model_prob=float(drawn.model[0][candidate]),
                prob=float(drawn.sampled[0][candidate]),
                kept=bool(np.isfinite(drawn.scores[candidate])),
                chosen=candidate == drawn.token,
            )
            for candidate, token_bytes in zip(candidates, candidate_bytes, strict=True)
        )
