"""The events of a text that a server samples. A number that the server does not tell is None."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import exp, log
from time import perf_counter

from minillm_repl.chat.thinking import END_OF_THOUGHT, START_OF_THOUGHT
from minillm_repl.errors import UserError
from minillm_repl.generate import (
    AnswerEvent,
    Candidate,
    Finished,
    GenerationConfig,
    Inserted,
    Listing,
    Reason,
    Sampling,
    Step,
)
from minillm_repl.generate.options import NO_NUMBERS, SAMPLER_ORDER
from minillm_repl.language import _
from minillm_repl.remote import Entry, Facts, Job, Listed, Part
from minillm_repl.remote.engines import Engine
from minillm_repl.remote.http import ServerError, Stopped
from minillm_repl.remote.numbers import entropy_bounds
from minillm_repl.remote.tokenizer import RemoteTokenizer
from minillm_repl.settings import default_of, value_of

_EVERYWHERE = ("temp", "top-k", "top-p", "min-p", "repeat-penalty")  # left out where unknown
_ROUNDING = 1e-3  # by which probabilities may sum to more than 1
_ENDS: dict[str, Reason] = {"length": "length", "max_tokens": "length"}


def remote_events(
    engine: Engine,
    tokenizer: RemoteTokenizer,
    ids: Sequence[int],
    config: GenerationConfig,
    seed: int,
    interrupted: Callable[[], bool],
) -> Iterator[AnswerEvent]:
    """Yield a `Step` for each token that a server names, and `Finished`. The tags of thoughts that
    it tells apart are `Inserted`.

    What had come stays when the server breaks off: the reason is `cut`. Raises UserError if nothing
    has come.
    """
    check_samplers(engine, config.sampling)
    job = make_job(engine.facts, tokenizer, ids, config, seed)
    started, first, tokens, text = perf_counter(), 0.0, 0, ""
    reason, detail = "cut", _("the server broke off")
    steps = Steps(engine.facts, tokenizer)
    try:
        for tag, part in tagged(engine.parts(job, interrupted)):
            first = first or perf_counter()
            text += tag + part.text
            if tag:
                yield Inserted(ids=(tokenizer.intern(tag.encode()),), text=tag)
            for step in steps.of(part):
                tokens += 1
                yield step
            if part.finish:
                reason, detail = _ENDS.get(part.finish, "done"), ""
    except Stopped:
        reason, detail = "interrupt", ""
    except (ServerError, UserError) as error:
        if not tokens:
            raise
        reason, detail = "cut", str(error)
    if reason == "cut" and not tokens:
        raise ServerError(_("{source} broke off before its answer", source=engine.facts.source))
    begun = first or perf_counter()
    yield Finished(
        reason=reason,  # type: ignore[arg-type]
        text=text,
        prompt_tokens=len(ids),
        tokens=tokens,
        prompt_seconds=begun - started,
        seconds=perf_counter() - begun,
        detail=detail,
    )


def tagged(parts: Iterable[Part]) -> Iterator[tuple[str, Part]]:
    """Yield each part with all that it says as its text, after the tag that comes before it.

    So a text is as a model writes it, also where a server tells the thoughts apart.
    """
    is_open = False
    for part in parts:
        if part.thought:
            yield "" if is_open else START_OF_THOUGHT, replace(part, text=part.thought, finish="")
            is_open = True
            if not part.text and not part.finish:
                continue
            part = replace(part, entries=())  # they are those of the thought  # noqa: PLW2901
        tag = END_OF_THOUGHT if is_open and part.text else ""
        is_open = is_open and not tag
        yield tag, part


def check_samplers(engine: Engine, sampling: Sampling) -> None:
    """Raise UserError for a sampler that is on and that a server does not have."""
    for name in (*SAMPLER_ORDER, "mirostat", *NO_NUMBERS):
        is_on = value_of(sampling, name) != default_of(sampling, name)
        if is_on and name not in _EVERYWHERE and name not in engine.more_samplers:
            raise UserError(
                _(
                    "{source} does not know {name}: `:{name} default` turns it off",
                    source=engine.facts.source,
                    name=name,
                )
            )


def make_job(
    facts: Facts,
    tokenizer: RemoteTokenizer,
    ids: Sequence[int],
    config: GenerationConfig,
    seed: int,
) -> Job:
    """Return what a server is asked. Raises UserError for what it cannot continue."""
    messages, variables = tokenizer.conversation(ids)
    job = Job(
        messages=messages,
        variables=variables,
        sampling=config.sampling,
        seed=seed,
        stop=tuple(config.stop),
        max_tokens=config.max_tokens,
        n_listed=min(max(config.n_candidates, 1), facts.most_listed(in_chat=bool(messages))),
    )
    if messages and len(ids) > 1:
        raise UserError(
            _("{source} only answers messages: it cannot continue an answer", source=facts.source)
        )
    if messages:
        return job
    if not facts.completes:
        raise UserError(_("{source} only answers messages, with `:chat on`", source=facts.source))
    if facts.has_ids and tokenizer.has_server_ids(ids):
        return replace(job, ids=tuple(ids))
    data = b"".join(map(tokenizer.token_bytes, ids))
    return replace(job, text=data.decode("utf-8", "replace"))


class Steps:
    """Makes steps of the parts of an answer, one after the other."""

    def __init__(self, facts: Facts, tokenizer: RemoteTokenizer) -> None:
        self._facts, self._tokenizer = facts, tokenizer
        self._count = 0

    def of(self, part: Part) -> list[Step]:
        """Return the steps of a part: one for each token with an entry, or one without numbers."""
        intern = self._tokenizer.intern
        entries = tuple(map(self._named, part.entries))
        if part.text and not entries:  # a step without numbers
            entries = (Entry(token=Listed(text=part.text)),)
        steps = []
        for place, (entry, own) in enumerate(zip(entries, self._ids(entries, part), strict=True)):
            self._tokenizer.learn([entry.token, *entry.top])
            text = part.text if place == len(entries) - 1 else ""
            steps.append(make_step(self._count, entry, text, own, self._facts, intern))
            self._count += 1
        return steps

    def _named(self, entry: Entry) -> Entry:
        """Return an entry in which tokens that came as an id alone have their texts."""

        def named(each: Listed) -> Listed:
            if each.text or each.bytes or each.id is None:
                return each
            data = self._tokenizer.token_bytes(each.id)
            text = data.decode("utf-8", "replace") or self._tokenizer.special_name(each.id)
            return replace(each, text=text, bytes=tuple(data) or None)

        return replace(entry, token=named(entry.token), top=tuple(map(named, entry.top)))

    def _ids(self, entries: Sequence[Entry], part: Part) -> list[int]:
        """Return an id for each entry: the server's, or ours, whose texts are that of the part."""
        intern = self._tokenizer.intern
        pieces = [bytes(each.token.bytes or each.token.text.encode()) for each in entries]
        if b"".join(pieces) != part.text.encode():  # a text that waits, or has lost a token
            pieces = [b""] * (len(entries) - 1) + [part.text.encode()]
        return [
            intern(piece) if each.token.id is None else each.token.id
            for each, piece in zip(entries, pieces[: len(entries)], strict=True)
        ]


def make_step(
    index: int,
    entry: Entry,
    text: str,
    token: int,
    facts: Facts,
    intern: Callable[[bytes], int],
) -> Step:
    """Return the step of a token, with the numbers that are known.

    `intern` gives ids to tokens that have none.
    """
    top, chosen = _with_chosen(entry)
    probs = [exp(each.logprob) for each in top if each.logprob is not None]
    is_distribution = bool(probs) and sum(probs) <= 1 + _ROUNDING
    if not is_distribution:  # no probabilities at all: none of them is shown
        top, probs = (), []
    prob = exp(top[chosen].logprob or 0.0) if top and chosen is not None else None
    is_sampled = facts.stage == "sampled"
    sampled = prob if is_sampled else _exp(entry.sampled_logprob)
    n_listed = len(top) - int(chosen is not None and chosen >= len(entry.top))
    return Step(
        index=index,
        id=token,
        text=text,
        bytes=_bytes(entry.token),
        prob=sampled,
        logprob=log(sampled) if sampled else None,
        model_prob=None if is_sampled else prob,
        rank=entry.rank or (chosen + 1 if chosen is not None and chosen < n_listed else None),
        entropy=None,
        top=tuple(
            _candidate(each, place == chosen, intern, is_sampled=is_sampled)
            for place, each in enumerate(top)
        ),
        listing=Listing(
            source=facts.source,
            k=n_listed,
            mass=min(sum(probs), 1.0) if probs else None,
            stage=facts.stage,
            entropy=entropy_bounds(probs, facts.vocab_size),
            exact_bytes=facts.exact_bytes,
        ),
    )


def _with_chosen(entry: Entry) -> tuple[tuple[Listed, ...], int | None]:
    """Return the listed tokens with the chosen one, last if it is not among them; and its index.

    It is found by its id, else by its text and its log-probability. The index is None where the
    chosen token has no probability.
    """
    token = entry.token
    for place, each in enumerate(entry.top):
        same = (
            each.id == token.id
            if token.id is not None and each.id is not None
            else (each.text, each.bytes, each.logprob) == (token.text, token.bytes, token.logprob)
        )
        if same:
            return entry.top, place
    if token.logprob is None:
        return entry.top, None
    return (*entry.top, token), len(entry.top)


def _candidate(
    each: Listed, chosen: bool, intern: Callable[[bytes], int], *, is_sampled: bool
) -> Candidate:
    prob, data = _exp(each.logprob), _bytes(each)
    own_text = bytes(data) or each.text.encode("utf-8", "replace")
    return Candidate(
        id=intern(own_text) if each.id is None else each.id,
        text=each.text,
        bytes=data,
        model_prob=None if is_sampled else prob,
        prob=prob if is_sampled else None,
        kept=True,
        chosen=chosen,
    )


def _bytes(token: Listed) -> tuple[int, ...]:
    """Return the bytes of a token; none for a special one, nor for a part of a character whose
    bytes the server does not tell.
    """
    if token.bytes is not None:
        return token.bytes
    is_known = not token.is_special and "\ufffd" not in token.text
    return tuple(token.text.encode("utf-8", "replace")) if is_known else ()


def _exp(logprob: float | None) -> float | None:
    return None if logprob is None else exp(logprob)
