"""Our own server (`--serve`, docs/server.md): ids, exact bytes, all log-probabilities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minillm_repl.chat import Message
from minillm_repl.generate.options import NO_NUMBERS, PARAMETERS, SAMPLER_ORDER
from minillm_repl.language import _
from minillm_repl.remote import Entry, Facts, Job, Json, Listed, Part, Rendered, numbers
from minillm_repl.remote.engines import Engine
from minillm_repl.remote.http import Connection, ServerError

NAME = "minillm-repl"


def facts(connection: Connection, model: Json) -> Facts:
    """Return what the server says of its model. Raises ServerError."""
    vocab_size = numbers.count(model.get("vocab_size"))
    start = numbers.fields(connection.ask("/tokenize", {"content": ""}))
    properties = numbers.fields(connection.get("/props"))
    return Facts(
        engine=NAME,
        source=_("{engine} at {address}", engine=NAME, address=connection.address.name),
        model=numbers.text(model.get("id")),
        vocab_size=vocab_size,
        context_length=numbers.count(model.get("max_model_len")),
        n_listed=vocab_size or 0,
        stage="raw",
        has_ids=True,
        exact_bytes=True,
        scores_prompt=True,
        completes=True,
        chats=model.get("chats") is True,
        template=numbers.text(properties.get("chat_template")),
        cares=model.get("care") is True,
        eos_token_ids=tuple(numbers.ids(model.get("eos_token_ids")) or ()),
        start_ids=tuple(numbers.ids(start.get("tokens")) or ()),
        recommended=numbers.fields(model.get("sampling")),
    )


# All that a request to our server may set, under the names of the settings.
_ASIDE = ("temp", "top-k", "top-p", "min-p", "repeat-penalty")  # these have names of OpenAI's
MORE_SAMPLERS = {
    name: name.replace("-", "_")
    for name in (*SAMPLER_ORDER, "mirostat", *PARAMETERS)
    if name not in _ASIDE and name not in NO_NUMBERS
}


class OwnEngine(Engine):
    """Our own server."""

    block = 4096  # ids that are asked for together

    more_samplers = MORE_SAMPLERS

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[Listed] | None:
        """Return the tokens of a text."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        found = numbers.fields(self.connection.post("/tokenize", body))
        ids, pieces = numbers.ids(found.get("tokens")), numbers.items(found.get("bytes"))
        if ids is None or len(pieces) != len(ids):
            raise ServerError(_("{source} sends no tokens", source=self.facts.source))
        return [
            Listed(text=bytes(data).decode("utf-8", "replace"), bytes=data, id=token)
            if (data := numbers.byte_values(piece))
            else self.tokens([token])[0]
            for token, piece in zip(ids, pieces, strict=True)
        ]

    def unknown(self, text: str) -> list[str]:
        """Return the characters that the vocabulary lacks."""
        found = numbers.fields(self.connection.post("/tokenize", {"content": text}))
        return [each for each in numbers.items(found.get("unknown")) if isinstance(each, str)]

    def tokens(self, ids: Sequence[int]) -> list[Listed]:
        """Return what ids stand for."""
        found = numbers.fields(self.connection.post("/detokenize", {"tokens": list(ids)}))
        pieces = [numbers.byte_values(each) for each in numbers.items(found.get("pieces"))]
        names = [numbers.text(each) for each in numbers.items(found.get("names"))]
        if not len(pieces) == len(names) == len(ids):
            raise ServerError(_("{source} sends no tokens", source=self.facts.source))
        return [
            Listed(
                text=bytes(data).decode("utf-8", "replace") if data else name,
                bytes=data or None,
                id=token,
            )
            for token, data, name in zip(ids, pieces, names, strict=True)
        ]

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, parse_special: bool
    ) -> Rendered | None:
        """Return the prompt of a conversation."""
        talk = [{"role": each.role, "content": each.content} for each in messages]
        body: Json = {"messages": talk, "parse_special": parse_special}
        body |= {"chat_template_kwargs": dict(variables)} if variables else {}
        found = numbers.fields(self.connection.post("/apply-template", body))
        ids = numbers.ids(found.get("tokens"))
        if not ids:
            raise ServerError(_("{source} sends no tokens", source=self.facts.source))
        return Rendered(
            ids=tuple(ids), eos_token_ids=tuple(numbers.ids(found.get("eos_token_ids")) or ())
        )

    def request(self, job: Job) -> tuple[str, Json]:
        """Return a request of `/v1/completions`."""
        sampling = job.sampling
        return "/v1/completions", {
            "model": self.facts.model,
            "prompt": list(job.ids) or job.text,
            "max_tokens": job.max_tokens,
            "logprobs": job.n_listed,
            "temperature": sampling.temp,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repeat_penalty,
            "seed": job.seed,
            "stop": list(job.stop),
            "stream": True,
            **self.more(job),
        }

    def part(self, event: Any, job: Job) -> Part:
        """Return what an event brings."""
        del job
        choice = numbers.fields((numbers.items(numbers.fields(event).get("choices")) or [{}])[0])
        content = numbers.fields(choice.get("logprobs")).get("content")
        return Part(
            text=numbers.text(choice.get("text")),
            entries=numbers.entries(content, exact_bytes=True),
            finish=numbers.text(choice.get("finish_reason")),
        )

    def logits(self, ids: Sequence[int], interrupted: Callable[[], bool]) -> list[float]:
        """Return the model's own logits after `ids`, bit for bit."""
        found = self.connection.post("/logits", {"prompt": list(ids)}, interrupted)
        logits = numbers.items(numbers.fields(found).get("logits"))
        if len(logits) != self.facts.vocab_size or not all(map(numbers.is_finite, logits)):
            raise ServerError(_("{source} sends no logits", source=self.facts.source))
        return logits

    def score(
        self, ids: Sequence[int], since: int, n_listed: int, interrupted: Callable[[], bool]
    ) -> list[Entry | None]:
        """Return each token of a text from position `since` on, with its log-probability."""
        body = {
            "prompt": list(ids),
            "max_tokens": 0,
            "echo": True,
            "logprobs": min(n_listed, self.facts.n_listed),
        }
        found = numbers.fields(self.connection.post("/v1/completions", body, interrupted))
        choice = numbers.fields((numbers.items(found.get("choices")) or [{}])[0])
        content = numbers.items(numbers.fields(choice.get("logprobs")).get("content"))
        scored = [numbers.entry(each, exact_bytes=True) for each in content]
        if [each and each.token.id for each in scored] != list(ids):
            raise ServerError(_("{source} scores another text", source=self.facts.source))
        return list(scored[since:])
