"""One thread that computes what all clients ask for, one request after the other."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from minillm_repl.chat import Message, make_prompt
from minillm_repl.chat.thinking import splitter_after
from minillm_repl.errors import UserError
from minillm_repl.generate import (
    AnswerEvent,
    Finished,
    GenerationConfig,
    GenerationEvent,
    Inserted,
    Prefill,
    Step,
    TokenScore,
)
from minillm_repl.generate.generate import check_finite, generate, prefill
from minillm_repl.generate.sampling import make_rng
from minillm_repl.repl.conversation import fresh_seed
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.thinking import chosen_template, finish_prompt, limit_thought
from minillm_repl.serve import RequestError
from minillm_repl.serve.requests import Completion, Prompt

MAX_WAITING = 64  # requests that wait for the model; more are refused with 503
MAX_SECONDS = 600.0  # of computing one request
_MAX_SANDBOXES = 2  # processes that render chat templates or try formats at once


@dataclass(frozen=True)
class Scored:
    """The tokens of a prompt, and the scores of all but the first; none if nobody wants them."""

    ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()


Event = Scored | Step | Inserted | Finished
Sent = Event | list[float] | Exception | None  # logits are a list; None ends a job
_END = None


@dataclass
class _Job:
    events: Callable[[Callable[[], bool]], Iterator[Event | list[float]]]
    send: Callable[[Sent], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """The model, and the queue of what it is asked for. All its methods may be called at once."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._jobs: queue.Queue[_Job | None] = queue.Queue(MAX_WAITING)
        self._closed = threading.Event()
        # Each is a process with a limit of seconds: many at once would all run out of it.
        self._sandboxes = threading.Semaphore(_MAX_SANDBOXES)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    # -- what a client asks for, as ids

    def text_ids(self, prompt: Prompt, *, special: bool) -> tuple[int, ...]:
        """Return the ids of a prompt, one or more. Raises RequestError for a prompt without any."""
        tokenizer = self.model.checkpoint.tokenizer
        if isinstance(prompt, str):
            ids = tuple(tokenizer.encode(prompt, parse_special=special))
            unknown = tokenizer.find_unknown(prompt)
            if unknown and not tokenizer.unk_token:
                raise RequestError(400, f"the vocabulary lacks {', '.join(unknown[:8])}", "prompt")
        else:
            ids = prompt
        if not ids:
            raise RequestError(400, "the prompt is empty", "prompt")
        self._check_fits(ids)
        return ids

    def chat_ids(
        self,
        messages: Sequence[Message],
        settings: Settings,
        *,
        special: bool,
        has_format: bool = False,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of a conversation, and the ids that end its answer.

        The settings have variables for the template, and whether the model thinks.

        Raises RequestError if the model has no chat template, or the template refuses it.
        """
        checkpoint = self.model.checkpoint
        if checkpoint.chat_template is None:
            raise RequestError(400, "the model has no chat template; use /v1/completions")
        template, tokenizer = checkpoint.chat_template, checkpoint.tokenizer
        try:
            with self._sandboxes:
                chosen = chosen_template(template, settings)
                prompt = make_prompt(chosen, tokenizer, messages, parse_special=special)
        except UserError as error:
            raise RequestError(400, str(error), "messages") from None
        ids = finish_prompt(
            template,
            tokenizer,
            prompt.ids,
            thinks=settings.think != "off",
            has_format=has_format or bool(settings.format),
        )
        self._check_fits(ids)
        return tuple(ids), prompt.eos_token_ids

    def resolved(self, completion: Completion, turn_end_ids: Sequence[int]) -> Completion:
        """Return what is asked with its rules for this model's tokens.

        Raises RequestError, also for a format that cannot be.
        """
        ends, form = (*self.model.checkpoint.eos_token_ids, *turn_end_ids), completion.form
        try:
            with self._sandboxes:
                rules = self.model.token_rules(completion.settings, ends, form)
                if rules.constraint:
                    rules.constraint.start()  # raises where no token can begin it
        except UserError as error:
            raise RequestError(400, str(error), form.name if form else None) from None
        return replace(completion, rules=rules)

    def _check_fits(self, ids: Sequence[int]) -> None:
        context = self.model.decoder.context_length
        if len(ids) > context:
            raise RequestError(
                400, f"the prompt has {len(ids)} tokens, more than the context of {context}"
            )

    # -- what is computed

    async def run(
        self, completion: Completion, ids: tuple[int, ...], turn_end_ids: tuple[int, ...]
    ) -> AsyncIterator[Event]:
        """Yield the scored prompt if it belongs to the answer, then each step, then the end.

        Closing this iterator ends the computing. Raises RequestError, and UserError if the logits
        are not finite.
        """

        def events(interrupted: Callable[[], bool]) -> Iterator[Event]:
            return self._events(completion, ids, turn_end_ids, interrupted)

        async for event in self._compute(events):
            assert not isinstance(event, list)
            yield event

    async def logits(self, ids: tuple[int, ...]) -> list[float]:
        """Return the logits of the token after `ids`. Raises RequestError, and UserError."""

        def events(interrupted: Callable[[], bool]) -> Iterator[list[float]]:
            logits = prefill(self.model.decoder, ids, interrupted)
            if logits is not None:
                yield check_finite(logits, len(ids)).tolist()

        async for found in self._compute(events):
            assert isinstance(found, list)
            return found
        raise RequestError(503, "the server is ending")

    async def _compute(
        self, events: Callable[[Callable[[], bool]], Iterator[Event | list[float]]]
    ) -> AsyncIterator[Event | list[float]]:
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Sent]()

        def send(event: Sent) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is there any more
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        job = _Job(events, send)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise RequestError(503, "too many requests wait for the model; try later") from None
        try:
            while (event := await inbox.get()) is not _END:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            job.cancelled.set()

    def _events(
        self,
        completion: Completion,
        ids: tuple[int, ...],
        turn_end_ids: tuple[int, ...],
        interrupted: Callable[[], bool],
    ) -> Iterator[Event]:
        settings, model = completion.settings, self.model
        if completion.echo:
            yield self._scored(ids, completion.n_candidates, interrupted)
        eos_token_ids = model.checkpoint.eos_token_ids + turn_end_ids
        config = GenerationConfig(
            max_tokens=completion.max_tokens,
            sampling=settings,
            stop=settings.stop,
            eos_token_ids=eos_token_ids,
            rules=completion.rules,
            context_shift=False,
            n_candidates=completion.n_candidates or 0,
            answer_start=len(ids),
        )
        tokenizer, seed, text = model.checkpoint.tokenizer, fresh_seed(settings), list(ids)

        def run(done: int) -> Iterator[GenerationEvent]:
            """Continue the text after `done` tokens of this answer."""
            rest = replace(config, max_tokens=max(0, config.max_tokens - done))
            return generate(model.decoder, tokenizer, text, rest, make_rng(seed, done), interrupted)

        answer: Iterator[AnswerEvent] = run(0)
        if isinstance(settings.think, int) and completion.messages:
            splitter = splitter_after(tokenizer, ids)
            answer = limit_thought(run, splitter, settings.think, tokenizer)
        for event in answer:
            if isinstance(event, Step | Inserted):
                text.extend(event.ids if isinstance(event, Inserted) else [event.id])
            if not isinstance(event, Prefill):
                yield event

    def _scored(
        self, ids: tuple[int, ...], n_candidates: int | None, interrupted: Callable[[], bool]
    ) -> Scored:
        if n_candidates is None:
            return Scored(ids)
        return Scored(ids, tuple(self.model.decoder.score(ids, 1, n_candidates, interrupted)))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            deadline = time.monotonic() + MAX_SECONDS

            def stopped(job: _Job = job, deadline: float = deadline) -> bool:
                if time.monotonic() > deadline:
                    raise RequestError(503, f"not done after {MAX_SECONDS:g} seconds")
                return job.cancelled.is_set() or self._closed.is_set()

            try:
                if not stopped():
                    for event in job.events(stopped):
                        job.send(event)
                job.send(_END)
            # The client is told, whatever it is; the next request has nothing to do with it.
            except Exception as error:  # noqa: BLE001
                job.send(error)

    def close(self) -> None:
        """End what is computed, and the thread."""
        self._closed.set()
        with suppress(queue.Empty):
            while True:  # what waits is not begun
                self._jobs.get_nowait()
        self._jobs.put(None)
        self._thread.join(5)
