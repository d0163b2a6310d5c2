"""ollama by its own routes: lines of JSON, texts without ids, raw log-probabilities."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from minillm_repl.chat.thinking import SWITCHES
from minillm_repl.errors import UserError
from minillm_repl.remote import Facts, Job, Json, Part, numbers
from minillm_repl.remote.engines import PENALTIES, Engine, no_variables
from minillm_repl.remote.engines.openai import facts as openai_facts
from minillm_repl.remote.engines.openai import talk
from minillm_repl.remote.http import Connection
from minillm_repl.remote.sse import read_json_lines


def facts(connection: Connection, model: Json) -> Facts:
    """Return what is known of the server before it is tried."""
    return replace(openai_facts(connection, model, "ollama"), stage="raw")


class OllamaEngine(Engine):
    """ollama's server."""

    more_samplers = PENALTIES | {"typical-p": "typical_p"}

    def request(self, job: Job) -> tuple[str, Json]:
        """Return a request of `/api/chat`, or of `/api/generate` without any template."""
        sampling, n_listed = job.sampling, job.n_listed
        body: Json = {
            "model": self.facts.model,
            "stream": True,
            "options": {
                "num_predict": job.max_tokens,
                "temperature": sampling.temp,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "repeat_penalty": sampling.repeat_penalty,
                "repeat_last_n": -1,
                "seed": job.seed,
                "stop": list(job.stop),
                **self.more(job),
            },
        }
        if n_listed:
            body |= {"logprobs": True, "top_logprobs": n_listed}
        if job.messages:
            return "/api/chat", body | {"messages": talk(job)} | self._think(job)
        return "/api/generate", body | {"prompt": job.text, "raw": True}

    def _think(self, job: Job) -> Json:
        """Return the one variable that ollama knows, if it is set. Raises UserError for others."""
        switches = [job.variables[name] for name in SWITCHES if name in job.variables]
        if len(switches) < len(job.variables):
            raise UserError(no_variables(self.facts.source))
        return {"think": switches[0]} if switches else {}

    def events(self, chunks: Iterator[bytes]) -> Iterator[Any]:
        """Yield the lines of a stream."""
        return read_json_lines(chunks)

    def part(self, event: Any, job: Job) -> Part:
        """Return what a line brings."""
        found = numbers.fields(event)
        place = numbers.fields(found.get("message")) if job.messages else found
        reason = numbers.text(found.get("done_reason")) or "stop"
        return Part(
            text=numbers.text(place.get("content" if job.messages else "response")),
            thought=numbers.text(place.get("thinking")),
            entries=numbers.entries(found.get("logprobs"), exact_bytes=False),
            finish=reason if found.get("done") is True else "",
        )
