"""The shape of OpenAI's responses: messages only, with log-probabilities where included."""

from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.remote import Job, Json, Part, numbers
from minillm_repl.remote.engines import Engine, no_variables
from minillm_repl.remote.engines.openai import talk

_ENDS = {"response.completed": "stop", "response.incomplete": "length"}


class ResponsesEngine(Engine):
    """A server that answers at `/v1/responses`."""

    def request(self, job: Job) -> tuple[str, Json]:
        """Return a request of `/v1/responses`."""
        n_listed = job.n_listed
        if job.variables:
            raise UserError(no_variables(self.facts.source))
        body: Json = {
            "model": self.facts.model,
            "input": talk(job),
            "max_output_tokens": job.max_tokens,
            "temperature": job.sampling.temp,
            "top_p": job.sampling.top_p,
            "stream": True,
            "store": False,
        }
        if n_listed:
            body |= {"include": ["message.output_text.logprobs"], "top_logprobs": n_listed}
        return "/v1/responses", body

    def part(self, event: Any, job: Job) -> Part:
        """Return what an event brings: a delta with its tokens, or the end."""
        del job
        found = numbers.fields(event)
        kind = numbers.text(found.get("type"))
        if kind == "response.output_text.delta":
            return Part(
                text=numbers.text(found.get("delta")),
                entries=numbers.entries(found.get("logprobs"), exact_bytes=False),
            )
        if kind == "response.reasoning_text.delta":
            return Part(thought=numbers.text(found.get("delta")))
        if kind in ("error", "response.failed"):
            failed = numbers.fields(numbers.fields(found.get("response")).get("error"))
            said = numbers.text(found.get("message")) or numbers.text(failed.get("message"))
            raise self.connection.error(said or kind)
        return Part(finish=_ENDS.get(kind, ""))
