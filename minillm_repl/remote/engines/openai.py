"""Any server in the shapes of OpenAI's API: completions and chat completions."""

from typing import Any

from minillm_repl.chat.thinking import without_thoughts
from minillm_repl.language import _
from minillm_repl.remote import Entry, Facts, Job, Json, Listed, Part, numbers
from minillm_repl.remote.engines import PENALTIES, Engine
from minillm_repl.remote.http import Connection
from minillm_repl.settings import default_of

MOST_LISTED = 20  # of OpenAI's API


def facts(connection: Connection, model: Json, engine: str = "") -> Facts:
    """Return what is known of a server before it is tried."""
    name = connection.address.name
    return Facts(
        engine=engine or "openai",
        source=_("{engine} at {address}", engine=engine, address=name) if engine else name,
        model=numbers.text(model.get("id")),
        context_length=numbers.count(model.get("max_model_len")),
        n_listed=MOST_LISTED,
        completes=True,
        chats=True,
    )


class OpenAIEngine(Engine):
    """A server of which only the shape is known."""

    limit_field = "max_tokens"
    more_samplers = PENALTIES
    sends_all_samplers = False  # those that OpenAI does not know, where they are off

    def request(self, job: Job) -> tuple[str, Json]:
        """Return a request: of a chat if there are messages, else of a completion."""
        n_listed = job.n_listed
        body = {
            "model": self.facts.model,
            self.limit_field: job.max_tokens,
            "stream": True,
            **self.samplers(job),
        }
        if not job.messages:
            prompt = list(job.ids) or job.text
            return "/v1/completions", body | {"prompt": prompt} | (
                {"logprobs": n_listed} if n_listed else {}
            )
        if job.variables:
            body["chat_template_kwargs"] = dict(job.variables)
        return "/v1/chat/completions", body | {"messages": talk(job)} | (
            {"logprobs": True, "top_logprobs": n_listed} if n_listed else {}
        )

    def samplers(self, job: Job) -> Json:
        """Return the samplers; those that OpenAI does not know only where they are on."""
        sampling = job.sampling
        found: Json = {"temperature": sampling.temp, "top_p": sampling.top_p, "seed": job.seed}
        for name, field in (
            ("top_k", "top_k"), ("min_p", "min_p"), ("repeat_penalty", "repetition_penalty"),
        ):  # fmt: skip
            value = getattr(sampling, name)
            if self.sends_all_samplers or value != default_of(sampling, name.replace("_", "-")):
                found[field] = value
        if job.stop:
            found["stop"] = list(job.stop)
        return found | self.more(job)

    def part(self, event: Any, job: Job) -> Part:
        """Return what an event brings."""
        choice = numbers.fields((numbers.items(numbers.fields(event).get("choices")) or [{}])[0])
        logprobs = numbers.fields(choice.get("logprobs"))
        finish = numbers.text(choice.get("finish_reason"))
        delta = numbers.fields(choice.get("delta"))
        text = numbers.text(delta.get("content") if job.messages else choice.get("text"))
        # vLLM has renamed it.
        thought = numbers.text(delta.get("reasoning_content") or delta.get("reasoning"))
        # llama.cpp sends the chat shape in completions too.
        entries = numbers.entries(logprobs.get("content"), exact_bytes=self.facts.exact_bytes)
        entries = entries or legacy_entries(logprobs)
        return Part(text=text, thought=thought, entries=entries, finish=finish)


def legacy_entries(logprobs: Json) -> tuple[Entry, ...]:
    """Return the tokens of the older lists; none if the lists do not belong together."""
    tokens, values = (numbers.items(logprobs.get(name)) for name in ("tokens", "token_logprobs"))
    tops = numbers.items(logprobs.get("top_logprobs")) or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        return ()
    if not all(isinstance(token, str) for token in tokens):
        return ()
    return tuple(
        Entry(
            token=legacy_token(token, value),
            top=numbers.usable_top(
                legacy_token(text, listed) for text, listed in numbers.fields(top).items()
            ),
        )
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


_BY_ID = "token_id:"  # vLLM, with return_tokens_as_token_ids


def legacy_token(text: str, value: Any) -> Listed:
    """Return a token of the older lists; vLLM names some by their ids."""
    logprob = numbers.logprob(value)
    if text.startswith(_BY_ID) and text[len(_BY_ID) :].isdecimal() and len(text) < 20:
        return Listed(text="", id=numbers.token_id(int(text[len(_BY_ID) :])), logprob=logprob)
    data = None if "\ufffd" in text else tuple(text.encode("utf-8", "replace"))
    return Listed(text=text, bytes=data or None, logprob=logprob)


def talk(job: Job) -> list[Json]:
    """Return the messages of a job as JSON: answers without their thoughts, as templates want."""
    return [
        {
            "role": each.role,
            "content": without_thoughts(each.content) if each.role == "assistant" else each.content,
        }
        for each in job.messages
    ]
