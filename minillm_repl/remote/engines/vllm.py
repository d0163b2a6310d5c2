"""vLLM: OpenAI's shape, and ids where they are asked for. Its bytes are those of decoded text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from minillm_repl.remote import Entry, Facts, Job, Json, Listed, numbers
from minillm_repl.remote.engines.openai import OpenAIEngine
from minillm_repl.remote.engines.openai import facts as openai_facts
from minillm_repl.remote.http import Connection


def facts(connection: Connection, model: Json) -> Facts:
    """Return what is known of the server before it is tried."""
    known = openai_facts(connection, model, "vLLM")
    start = connection.ask("/tokenize", {"model": known.model, "prompt": ""})
    ids = numbers.ids(numbers.fields(start).get("tokens"))
    return replace(known, has_ids=True, scores_prompt=True, start_ids=tuple(ids or ()))


class VllmEngine(OpenAIEngine):
    """vLLM's server."""

    sends_all_samplers = True  # else those of the model's generation_config.json count

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[Listed] | None:
        """Return the tokens of a text."""
        del parse_special  # names of special tokens always mean the tokens
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": add_special}
        found = numbers.fields(self.connection.post("/tokenize", body))
        ids = numbers.ids(found.get("tokens"))
        return None if ids is None else self.tokens(ids)

    def tokens(self, ids: Sequence[int]) -> list[Listed]:
        """Return what ids stand for: each alone, so that a part of a character is `�`."""
        found = []
        for token in ids:
            body = {"model": self.facts.model, "tokens": [token]}
            text = numbers.text(
                numbers.fields(self.connection.post("/detokenize", body)).get("prompt")
            )
            data = None if "\ufffd" in text else tuple(text.encode()) or None
            found.append(Listed(text=text or f"#{token}", bytes=data, id=token))
        return found

    def samplers(self, job: Job) -> Json:
        """Return the samplers, and the wish for ids: equal texts would hide tokens."""
        ids = {} if job.messages else {"return_tokens_as_token_ids": True}
        top_k = job.sampling.top_k or -1
        return super().samplers(job) | {"top_k": top_k} | ids

    def score(
        self, ids: Sequence[int], since: int, n_listed: int, interrupted: Callable[[], bool]
    ) -> list[Entry | None]:
        """Return each token of a text from position `since` on, with its log-probability."""
        body = {
            "model": self.facts.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": min(n_listed, self.facts.n_listed),
        }
        found = numbers.fields(self.connection.post("/v1/completions", body, interrupted))
        choice = numbers.fields((numbers.items(found.get("choices")) or [{}])[0])
        places = numbers.items(choice.get("prompt_logprobs"))
        if len(places) != len(ids):
            return [None]
        scored = [_scored(place, token) for place, token in zip(places, ids, strict=True)]
        return scored[since:]


def _scored(place: Any, token: int) -> Entry | None:
    """Return the token of a place of a prompt: `{"<id>": {logprob, rank, decoded_token}}`."""
    found = {
        int(name): numbers.fields(value)
        for name, value in numbers.fields(place).items()
        if name.isdecimal() and len(name) < 11
    }
    if token not in found:
        return None
    listed = {
        each: Listed(
            text=numbers.text(value.get("decoded_token")),
            id=each,
            logprob=numbers.logprob(value.get("logprob")),
        )
        for each, value in found.items()
    }
    rank = numbers.count(found[token].get("rank"))
    return Entry(token=listed[token], top=numbers.usable_top(listed.values()), rank=rank)
