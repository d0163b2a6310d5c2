"""The token loop: reads the prompt, then yields one `Step` per token and one `Finished`."""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from time import perf_counter

import numpy as np

from minillm_repl.errors import UserError
from minillm_repl.generate.decoder import Decoder, prefill
from minillm_repl.generate.events import Candidate, Finished, Reason, Step
from minillm_repl.generate.options import Sampling
from minillm_repl.generate.sampling import (
    Probabilities,
    Scores,
    SoftmaxArrays,
    entropy,
    make_scratch,
    process_logits,
    rank,
    sample_token,
    softmax,
    topk_ids,
)
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer


def never_interrupted() -> bool:
    """Nobody interrupts."""
    return False


def ignore_progress(_done: int, _total: int) -> None:
    """Ignore how much of the prompt is read."""


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    sampling: Sampling,
    rng: np.random.Generator,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    eos_token_ids: Collection[int] = (),
    context_shift: bool = True,
    n_candidates: int = 0,
    interrupted: Callable[[], bool] = never_interrupted,
    progress: Callable[[int, int], object] = ignore_progress,
) -> Iterator[Step | Finished]:
    """Continue `ids` (one or more) by at most `max_tokens` tokens, one `rng` number each, and say
    why it ended.

    `top` is how many candidates each step lists. The text ends before the first of the `stop`
    strings; what could still become one is held back until it is known not to. It also ends with
    one of the `end` tokens, which are no part of it. `interrupted` is asked between two tokens, and
    between two pieces of a long prompt; `progress` hears how many of how many tokens are read. Past
    the context the model sees the last tokens only, or, without `slide`, the text ends. Closing the
    generator early is safe at any step.

    Raises UserError if the model's logits are not finite.
    """
    ids = list(ids)
    prompt_tokens = len(ids)
    detokenizer = Detokenizer(stop, tokenizer.special_names if stop else ())
    scratch: tuple[SoftmaxArrays | None, SoftmaxArrays | None] | None = None
    prompt_seconds, started = 0.0, perf_counter()
    reason: Reason = "length"
    for index in range(max_tokens):
        if not context_shift and len(ids) > decoder.context_length:
            reason = "context"
            break
        if index == 0:
            logits, prompt_seconds = _timed_prefill(decoder, ids, interrupted, progress)
            started = perf_counter()
        else:
            logits = None if interrupted() else prefill(decoder, ids, interrupted)
        if logits is None:
            reason = "interrupt"
            break
        scratch = scratch or (make_scratch(len(logits)), make_scratch(len(logits)))
        step = _sample_step(
            index,
            logits,
            sampling,
            ids,
            rng,
            tokenizer,
            eos_token_ids,
            n_candidates,
            detokenizer,
            scratch,
        )
        ids.append(step.id)
        yield step
        if detokenizer.stopped or step.id in eos_token_ids:
            reason = "stop" if detokenizer.stopped else "end"
            break
    final_text = detokenizer.finish()
    tokens = len(ids) - prompt_tokens
    yield Finished(
        reason, final_text, prompt_tokens, tokens, prompt_seconds, perf_counter() - started
    )


def _timed_prefill(
    decoder: Decoder,
    ids: Sequence[int],
    interrupted: Callable[[], bool],
    progress: Callable[[int, int], object],
) -> tuple[Scores | None, float]:
    """Return the prompt's logits, None if interrupted, and seconds of reading less `progress`."""
    progress_seconds = 0.0

    def timed_progress(done: int, total: int) -> None:
        nonlocal progress_seconds
        called = perf_counter()
        progress(done, total)
        progress_seconds += perf_counter() - called

    if interrupted():
        return None, 0.0
    started = perf_counter()
    logits = prefill(decoder, ids, interrupted, timed_progress)
    return logits, perf_counter() - started - progress_seconds


def text_token_ids(
    tokenizer: Tokenizer, tokens: Sequence[int], finished: Finished, stop: Sequence[str] = ()
) -> list[int]:
    """Return the generated tokens that are part of the text: without the end token, and without
    a stop string's.
    """
    ids = list(tokens)
    if finished.reason == "end":
        ids.pop()
    if finished.reason == "stop":
        text_bytes, token_bytes = (
            len(finished.text.encode()),
            sum(len(tokenizer.token_bytes(token)) for token in ids),
        )
        while ids and (
            token_bytes > text_bytes or _occurs_in_stop(tokenizer.special_name(ids[-1]), stop)
        ):
            token_bytes -= len(tokenizer.token_bytes(ids.pop()))
    return ids


def _occurs_in_stop(name: str, stop: Sequence[str]) -> bool:
    return bool(name) and any(name in stop_string for stop_string in stop)


def check_finite(logits: Scores, tokens: int) -> Scores:
    """Return the logits after so many tokens. Raises UserError if they are not numbers."""
    if not np.isfinite(logits).all():
        raise UserError(
            _(
                "the logits at token {tokens} are not finite: a weight is not finite, or a "
                "result overflows float32",
                tokens=tokens,
            )
        )
    return logits


def _sample_step(
    index: int,
    logits: Scores,
    sampling: Sampling,
    ids: Sequence[int],
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    eos_token_ids: Collection[int],
    n_candidates: int,
    detokenizer: "Detokenizer",
    scratch: tuple[SoftmaxArrays | None, SoftmaxArrays | None],
) -> Step:
    """Draw the next token and describe it."""
    model_probs, model_logprobs = softmax(check_finite(logits, len(ids)), scratch[0])
    scores = process_logits(logits, sampling, ids)
    sampling_probs, sampling_logprobs = (
        (model_probs, model_logprobs) if scores is logits else softmax(scores, scratch[1])
    )
    token = sample_token(sampling_probs, rng)
    token_bytes = tokenizer.token_bytes(token)
    return Step(
        index=index,
        id=token,
        text=detokenizer.push(
            b"" if token in eos_token_ids else token_bytes, tokenizer.special_name(token)
        ),
        bytes=tuple(token_bytes),
        prob=float(sampling_probs[token]),
        logprob=float(sampling_logprobs[token]),
        model_prob=float(model_probs[token]),
        rank=rank(logits, token),
        entropy=entropy(model_probs, model_logprobs),
        top=_candidates(logits, scores, model_probs, sampling_probs, token, n_candidates, tokenizer)
        if n_candidates
        else (),
    )


def _candidates(
    logits: Scores,
    scores: Scores,
    model_probs: Probabilities,
    sampling_probs: Probabilities,
    token: int,
    k: int,
    tokenizer: Tokenizer,
) -> tuple[Candidate, ...]:
    """Return the `top` likeliest by the model, in the order of `Step.rank`; the chosen one last
    if it is below them.
    """
    candidate_ids = topk_ids(logits, k)
    if token not in candidate_ids:
        candidate_ids.append(token)
    candidate_bytes = [tokenizer.token_bytes(candidate) for candidate in candidate_ids]
    return tuple(
        Candidate(
            id=candidate,
            text=token_bytes.decode("utf-8", "replace") or tokenizer.special_name(candidate),
            bytes=tuple(token_bytes),
            model_prob=float(model_probs[candidate]),
            prob=float(sampling_probs[candidate]),
            kept=bool(np.isfinite(scores[candidate])),
            chosen=candidate == token,
        )
        for candidate, token_bytes in zip(candidate_ids, candidate_bytes, strict=True)
    )


class Detokenizer:
    """Turns token bytes into text as it becomes whole and certain.

    Bytes of an unfinished character wait for the rest; text that may be the start of a stop string
    waits until it is one, and is dropped, or is not, and comes out. A special token has no text:
    where a stop string names it, a surrogate, which no bytes become, stands for it.
    """

    def __init__(self, stop: Sequence[str] = (), special_names: Iterable[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        names = [name for name in special_names if _occurs_in_stop(name, stop)]
        self._surrogates = {name: chr(0xD800 + place) for place, name in enumerate(names[:0x800])}
        self._surrogate_removal = dict.fromkeys(map(ord, self._surrogates.values()))
        self._stop_strings = (
            *stop,
            *(self._with_surrogates(each) for each in stop if self._with_surrogates(each) != each),
        )
        self._pending = ""
        self._emitted: list[str] = []
        self.stopped = False

    def _with_surrogates(self, stop: str) -> str:
        for name in sorted(self._surrogates, key=len, reverse=True):
            stop = stop.replace(name, self._surrogates[name])
        return stop

    def push(self, token_bytes: bytes, special_name: str = "", is_final: bool = False) -> str:
        """Take a token's bytes, or a special one's name; return the text that became certain."""
        pending = (
            self._pending
            + self._decoder.decode(token_bytes, is_final)
            + self._surrogates.get(special_name, "")
        )
        stop_positions = [
            place for place in (pending.find(stop) for stop in self._stop_strings) if place >= 0
        ]
        if stop_positions:
            self.stopped = True
            emitted, self._pending = pending[: min(stop_positions)], ""
        else:
            n_pending = 0 if is_final else self._stop_prefix_length(pending)
            emitted, self._pending = (
                pending[: len(pending) - n_pending],
                pending[len(pending) - n_pending :],
            )
        emitted = emitted.translate(self._surrogate_removal)
        self._emitted.append(emitted)
        return emitted

    def _stop_prefix_length(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop_strings), default=0)
        ends = range(min(len(text), longest - 1), 0, -1)
        return next(
            (n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stop_strings)), 0
        )

    def finish(self) -> str:
        """Let go of what was held, and return the whole text."""
        if not self.stopped:
            self.push(b"", is_final=True)
        return "".join(self._emitted)
