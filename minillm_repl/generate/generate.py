"""The token loop: reads the prompt, then yields one `Step` per token and one `Finished`."""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from time import perf_counter

import numpy as np

from minillm_repl.errors import UserError
from minillm_repl.generate.decoder import Decoder, read
from minillm_repl.generate.events import Candidate, Finished, Reason, Step
from minillm_repl.generate.options import Sampling
from minillm_repl.generate.sampling import (
    Arrays,
    Probabilities,
    Scores,
    arrays,
    draw,
    entropy,
    likeliest,
    process,
    rank,
    softmax,
)
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer


def never() -> bool:
    """Nobody interrupts."""
    return False


def unheard(_done: int, _of: int) -> None:
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
    end: Collection[int] = (),
    slide: bool = True,
    top: int = 0,
    interrupted: Callable[[], bool] = never,
    progress: Callable[[int, int], object] = unheard,
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
    text = StopText(stop, tokenizer.special_names if stop else ())
    room: tuple[Arrays | None, Arrays | None] | None = None
    prompt_seconds, began = 0.0, perf_counter()
    reason: Reason = "length"
    for index in range(max_tokens):
        if not slide and len(ids) > decoder.context:
            reason = "context"
            break
        if index == 0:
            logits, prompt_seconds = _prefill(decoder, ids, interrupted, progress)
            began = perf_counter()
        else:
            logits = None if interrupted() else read(decoder, ids, interrupted)
        if logits is None:
            reason = "interrupt"
            break
        room = room or (arrays(len(logits)), arrays(len(logits)))
        step = _step(index, logits, sampling, ids, rng, tokenizer, end, top, text, room)
        ids.append(step.id)
        yield step
        if text.stopped or step.id in end:
            reason = "stop" if text.stopped else "end"
            break
    rest = text.end()
    tokens = len(ids) - prompt_tokens
    yield Finished(reason, rest, prompt_tokens, tokens, prompt_seconds, perf_counter() - began)


def _prefill(
    decoder: Decoder,
    ids: Sequence[int],
    interrupted: Callable[[], bool],
    progress: Callable[[int, int], object],
) -> tuple[Scores | None, float]:
    """Return the logits after the prompt, None if interrupted, and the seconds of reading it
    without `progress`.
    """
    away = 0.0

    def told(done: int, of: int) -> None:
        nonlocal away
        left = perf_counter()
        progress(done, of)
        away += perf_counter() - left

    if interrupted():
        return None, 0.0
    began = perf_counter()
    logits = read(decoder, ids, interrupted, told)
    return logits, perf_counter() - began - away


def kept(
    tokenizer: Tokenizer, tokens: Sequence[int], finished: Finished, stop: Sequence[str] = ()
) -> list[int]:
    """Return the generated tokens that are part of the text: without the end token, and without
    a stop string's.
    """
    ids = list(tokens)
    if finished.reason == "end":
        ids.pop()
    if finished.reason == "stop":
        shown, made = (
            len(finished.text.encode()),
            sum(len(tokenizer.token_bytes(token)) for token in ids),
        )
        while ids and (made > shown or _named(tokenizer.special(ids[-1]), stop)):
            made -= len(tokenizer.token_bytes(ids.pop()))
    return ids


def _named(name: str, stop: Sequence[str]) -> bool:
    return bool(name) and any(name in each for each in stop)


def finite(logits: Scores, tokens: int) -> Scores:
    """Return the logits after so many tokens. Raises UserError if they are not numbers."""
    if not np.isfinite(logits).all():
        raise UserError(
            _(
                "the logits at token {tokens} are not finite numbers: a weight is not one, "
                "or a result is too large"
                " for float32",
                tokens=tokens,
            )
        )
    return logits


def _step(
    index: int,
    logits: Scores,
    sampling: Sampling,
    ids: Sequence[int],
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    end: Collection[int],
    top: int,
    text: "StopText",
    room: tuple[Arrays | None, Arrays | None],
) -> Step:
    """Draw the next token and describe it."""
    model, model_log = softmax(finite(logits, len(ids)), room[0])
    scores = process(logits, sampling, ids)
    final, final_log = (model, model_log) if scores is logits else softmax(scores, room[1])
    token = draw(final, rng)
    piece = tokenizer.token_bytes(token)
    return Step(
        index=index,
        id=token,
        text=text.push(b"" if token in end else piece, tokenizer.special(token)),
        bytes=tuple(piece),
        prob=float(final[token]),
        logprob=float(final_log[token]),
        model_prob=float(model[token]),
        rank=rank(logits, token),
        entropy=entropy(model, model_log),
        top=_candidates(logits, scores, model, final, token, top, tokenizer) if top else (),
    )


def _candidates(
    logits: Scores,
    scores: Scores,
    model: Probabilities,
    final: Probabilities,
    token: int,
    top: int,
    tokenizer: Tokenizer,
) -> tuple[Candidate, ...]:
    """Return the `top` likeliest by the model, in the order of `Step.rank`; the chosen one last
    if it is below them.
    """
    shown = likeliest(logits, top)
    if token not in shown:
        shown.append(token)
    pieces = [tokenizer.token_bytes(candidate) for candidate in shown]
    return tuple(
        Candidate(
            id=candidate,
            text=piece.decode("utf-8", "replace") or tokenizer.special(candidate),
            bytes=tuple(piece),
            model_prob=float(model[candidate]),
            prob=float(final[candidate]),
            kept=bool(np.isfinite(scores[candidate])),
            chosen=candidate == token,
        )
        for candidate, piece in zip(shown, pieces, strict=True)
    )


class StopText:
    """Turns token bytes into text as it becomes whole and certain.

    Bytes of an unfinished character wait for the rest; text that may be the start of a stop string
    waits until it is one, and is dropped, or is not, and comes out. A special token has no text:
    where a stop string names it, a surrogate, which no bytes become, stands for it.
    """

    def __init__(self, stop: Sequence[str] = (), special: Iterable[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        names = [name for name in special if _named(name, stop)]
        self._stands = {name: chr(0xD800 + place) for place, name in enumerate(names[:0x800])}
        self._hidden = dict.fromkeys(map(ord, self._stands.values()))
        self._stop = (*stop, *(self._meant(each) for each in stop if self._meant(each) != each))
        self._held = ""
        self._whole: list[str] = []
        self.stopped = False

    def _meant(self, stop: str) -> str:
        for name in sorted(self._stands, key=len, reverse=True):
            stop = stop.replace(name, self._stands[name])
        return stop

    def push(self, piece: bytes, special: str = "", final: bool = False) -> str:
        """Take the bytes of one more token, or the name of a special one; return the text that
        became certain.
        """
        held = self._held + self._decoder.decode(piece, final) + self._stands.get(special, "")
        found = [place for place in (held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            certain, self._held = held[: min(found)], ""
        else:
            keep = 0 if final else self._unsure(held)
            certain, self._held = held[: len(held) - keep], held[len(held) - keep :]
        certain = certain.translate(self._hidden)
        self._whole.append(certain)
        return certain

    def _unsure(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop), default=0)
        ends = range(min(len(text), longest - 1), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)

    def end(self) -> str:
        """Let go of what was held, and return the whole text."""
        if not self.stopped:
            self.push(b"", final=True)
        return "".join(self._whole)
