"""SGLang by its own route `/generate`: ids. Its OpenAI stream repeats alternatives wrongly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from minillm_repl.generate import never_interrupted
from minillm_repl.remote import Entry, Facts, Job, Json, Listed, Part, numbers
from minillm_repl.remote.engines.openai import OpenAIEngine
from minillm_repl.remote.engines.openai import facts as openai_facts
from minillm_repl.remote.http import Connection, ServerError


def facts(connection: Connection, model: Json) -> Facts:
    """Return what is known of the server before it is tried."""
    known = openai_facts(connection, model, "SGLang")
    return replace(known, stage="sampled", has_ids=True, scores_prompt=True)


class SglangEngine(OpenAIEngine):
    """SGLang's server. A chat is answered in OpenAI's shape, and without numbers."""

    sends_all_samplers = True

    def __init__(self, connection: Connection, facts: Facts) -> None:
        super().__init__(connection, facts)
        self._can_tokenize = True

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[Listed] | None:
        """Return the tokens of a text; None where the server is too old to tell."""
        del parse_special
        if not self._can_tokenize:
            return None
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": add_special}
        try:
            found = numbers.fields(self.connection.post("/tokenize", body))
        except ServerError as error:
            if error.status not in (404, 405):
                raise
            self._can_tokenize = False
            return None
        ids = numbers.ids(found.get("tokens"))
        return None if ids is None else self.tokens(ids)

    def tokens(self, ids: Sequence[int]) -> list[Listed]:
        """Return what ids stand for."""
        found = []
        for token in ids:
            body = {"model": self.facts.model, "tokens": [token]}
            answer = numbers.fields(self.connection.post("/detokenize", body))
            text = numbers.text(answer.get("text") or answer.get("prompt"))
            data = None if "\ufffd" in text else tuple(text.encode()) or None
            found.append(Listed(text=text or f"#{token}", bytes=data, id=token))
        return found

    def request(self, job: Job) -> tuple[str, Json]:
        """Return a request of `/generate`; of a chat, one of OpenAI's shape."""
        if job.messages:
            return super().request(replace(job, n_listed=0))
        sampling = job.sampling
        prompt = {"input_ids": list(job.ids)} if job.ids else {"text": job.text}
        return "/generate", prompt | {
            "sampling_params": {
                "max_new_tokens": job.max_tokens,
                "temperature": sampling.temp,
                "top_k": sampling.top_k or -1,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repeat_penalty,
                "stop": list(job.stop),
                **self.more(job),
            },
            "return_logprob": True,
            "top_logprobs_num": job.n_listed,
            "return_text_in_logprobs": True,
            "stream": True,
        }

    def parts(
        self, job: Job, interrupted: Callable[[], bool] = never_interrupted
    ) -> Iterator[Part]:
        """Yield the parts of an answer. Each event has all tokens so far, or only the new ones."""
        if job.messages:
            yield from super().parts(job, interrupted)
            return
        seen, text = 0, ""
        for event in self.raw_events(job, interrupted):
            found = numbers.fields(event)
            meta, whole = numbers.fields(found.get("meta_info")), numbers.text(found.get("text"))
            entries = _entries(meta, "output")
            total = numbers.count(meta.get("completion_tokens")) or seen + len(entries)
            is_cumulative = len(entries) == total
            new_text = whole.removeprefix(text) if is_cumulative else whole
            text = whole if is_cumulative else text + whole
            new, seen = entries[seen:] if is_cumulative else entries, total
            reason = numbers.fields(meta.get("finish_reason")).get("type")
            yield Part(text=new_text, entries=new, finish=numbers.text(reason))

    def score(
        self, ids: Sequence[int], since: int, n_listed: int, interrupted: Callable[[], bool]
    ) -> list[Entry | None]:
        """Return each token of a text from position `since` on, with its log-probability."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": min(n_listed, self.facts.n_listed),
            "return_text_in_logprobs": True,
        }
        found = numbers.fields(self.connection.post("/generate", body, interrupted))
        scored = _entries(numbers.fields(found.get("meta_info")), "input")
        if [each.token.id for each in scored] != list(ids):
            return [None]
        return list(scored[since:])


def _entries(meta: Json, side: str) -> tuple[Entry, ...]:
    """Return the tokens of a list `[[logprob, id, text]]`, and what could have come."""
    tokens = [_token(each) for each in numbers.items(meta.get(f"{side}_token_logprobs"))]
    tops = numbers.items(meta.get(f"{side}_top_logprobs"))
    if len(tops) != len(tokens):
        tops = [None] * len(tokens)
    return tuple(
        Entry(token=token, top=numbers.usable_top(map(_token, numbers.items(top))))
        for token, top in zip(tokens, tops, strict=True)
        if token is not None
    )


def _token(value: Any) -> Listed | None:
    logprob, token, text = (*numbers.items(value), None, None, None)[:3]
    if numbers.token_id(token) is None:
        return None
    shown = numbers.text(text)
    data = None if "\ufffd" in shown else tuple(shown.encode()) or None
    return Listed(text=shown, bytes=data, id=token, logprob=numbers.logprob(logprob))
