"""The shapes of servers: what each is asked, and how its answers are read. One file a shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.generate import never_interrupted
from minillm_repl.language import _
from minillm_repl.remote import Entry, Facts, Job, Json, Listed, Part, Rendered
from minillm_repl.remote.http import Connection, ServerError, error_of
from minillm_repl.remote.sse import DONE, read_events
from minillm_repl.settings import default_of, value_of

_LEAST_LOGIT = -1e30  # for a probability of 0: samplers need finite logits


# As OpenAI names them, and every server that has them.
PENALTIES = {"presence-penalty": "presence_penalty", "frequency-penalty": "frequency_penalty"}


class Engine(Protocol):
    """One shape of a server. What a server cannot do is inherited from here."""

    connection: Connection
    facts: Facts
    block: int = 1  # ids that are asked for together
    more_samplers: Mapping[str, str] = {}  # settings that it knows besides, and its names of them

    def __init__(self, connection: Connection, facts: Facts) -> None:
        self.connection, self.facts = connection, facts

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[Listed] | None:
        """Return the tokens of a text, each with its id; None if the server does not tell."""
        del text, add_special, parse_special
        return None

    def unknown(self, text: str) -> list[str]:
        """Return the characters that the vocabulary lacks."""
        del text
        return []

    def tokens(self, ids: Sequence[int]) -> list[Listed]:
        """Return what ids stand for."""
        return [Listed(text=f"#{token}", id=token) for token in ids]

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, parse_special: bool
    ) -> Rendered | None:
        """Return the prompt of a conversation; None if the server writes it unseen."""
        del messages, variables, parse_special
        return None

    def request(self, job: Job) -> tuple[str, Json]:
        """Return the path and the body of a request that streams. Raises UserError."""
        del job
        raise UserError(_("{source} cannot continue this", source=self.facts.source))

    def more(self, job: Job) -> Json:
        """Return those of `more_samplers` that are on, as fields of a request."""
        return {
            field: value_of(job.sampling, name)
            for name, field in self.more_samplers.items()
            if value_of(job.sampling, name) != default_of(job.sampling, name)
        }

    def part(self, event: Any, job: Job) -> Part:
        """Return what an event of the stream brings."""
        raise NotImplementedError

    def events(self, chunks: Iterator[bytes]) -> Iterator[Any]:
        """Yield the events of a stream."""
        return read_events(chunks)

    def raw_events(
        self, job: Job, interrupted: Callable[[], bool] = never_interrupted
    ) -> Iterator[Any]:
        """Yield the events of an answer up to its end. Raises ServerError, and Stopped."""
        path, body = self.request(job)
        for event in self.events(self.connection.stream(path, body, interrupted)):
            if event is DONE:
                return
            error = error_of({"error": event.get("error")}) if isinstance(event, dict) else ""
            if error:
                raise self.connection.error(error)
            yield event

    def parts(
        self, job: Job, interrupted: Callable[[], bool] = never_interrupted
    ) -> Iterator[Part]:
        """Yield the parts of an answer as they come. Raises ServerError, and Stopped."""
        return (self.part(event, job) for event in self.raw_events(job, interrupted))

    def distribution(
        self, ids: Sequence[int], n_listed: int, interrupted: Callable[[], bool]
    ) -> Entry | None:
        """Return the likeliest next tokens, as those of the token that came; None without any."""
        parts = self.parts(Job(ids=ids, n_listed=n_listed), interrupted)
        return next((entry for part in parts for entry in part.entries), None)

    def logits(self, ids: Sequence[int], interrupted: Callable[[], bool]) -> list[float]:
        """Return the log-probability of each token of the vocabulary after `ids`.

        Only a server whose facts are full has them. Raises ServerError if one is missing.
        """
        size = self.facts.vocab_size or 0
        found = self.distribution(ids, size, interrupted)
        values = {each.id: each.logprob for each in found.top} if found else {}
        logits = [values.get(token) for token in range(size)]
        if None in logits:
            raise ServerError(_("{source} does not list every token", source=self.facts.source))
        return [max(each or 0.0, _LEAST_LOGIT) for each in logits]

    def score(
        self, ids: Sequence[int], since: int, n_listed: int, interrupted: Callable[[], bool]
    ) -> list[Entry | None]:
        """Return each token of a text from position `since` on, with its log-probability."""
        del ids, since, n_listed, interrupted
        raise UserError(no_scores(self.facts.source))


def no_variables(source: str) -> str:
    """Return what to say where a server's chat template takes no variables."""
    return _(
        "{source} takes no variables for a chat template: `:template off` and `:think auto` send "
        "none",
        source=source,
    )


def no_scores(source: str) -> str:
    """Return what to say where the probabilities of a given text cannot be had."""
    return _("{source} does not tell the probabilities of a given text", source=source)
