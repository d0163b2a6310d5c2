"""llama.cpp's server by its own routes: ids, true bytes, as many raw log-probabilities as asked."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minillm_repl.chat import Message
from minillm_repl.language import _
from minillm_repl.remote import Entry, Facts, Job, Json, Listed, Part, Rendered, numbers
from minillm_repl.remote.engines import PENALTIES, Engine
from minillm_repl.remote.http import Connection, ServerError
from minillm_repl.tokenizer import THOUGHT_TAGS

_FEW = 100  # tokens to list where the size of the vocabulary is not told
# Our order (generate/sampling.py). All others are off: the server's own defaults would count.
_SAMPLERS = [
    *("penalties", "dry", "top_n_sigma", "temperature", "top_k", "top_p", "min_p", "typ_p", "xtc")
]


def facts(connection: Connection, model: Json, properties: Json) -> Facts:
    """Return what the server tells of its model. Raises ServerError."""
    meta = numbers.fields(model.get("meta"))
    vocab_size = numbers.count(meta.get("n_vocab"))
    defaults = numbers.fields(properties.get("default_generation_settings"))
    start = connection.ask("/tokenize", {"content": "", "add_special": True})
    return Facts(
        engine="llama.cpp",
        source=_("{engine} at {address}", engine="llama.cpp", address=connection.address.name),
        model=numbers.text(model.get("id")),
        vocab_size=vocab_size,
        context_length=numbers.count(defaults.get("n_ctx")),
        n_listed=vocab_size or _FEW,
        stage="raw",
        has_ids=True,
        exact_bytes=True,
        completes=True,
        chats=bool(properties.get("chat_template")),
        template=numbers.text(properties.get("chat_template")),
        start_ids=tuple(numbers.ids(numbers.fields(start).get("tokens")) or ()),
    )


class LlamaCppEngine(Engine):
    """llama.cpp's server."""

    more_samplers = PENALTIES | {
        "typical-p": "typical_p",
        "top-n-sigma": "top_n_sigma",
        "xtc": "xtc_probability",
        "xtc-threshold": "xtc_threshold",
        "dry": "dry_multiplier",
        "dry-base": "dry_base",
        "dry-length": "dry_allowed_length",
    }

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[Listed] | None:
        """Return the tokens of a text."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        found = self.connection.post("/tokenize", body | {"with_pieces": True})
        tokens = [_piece(each) for each in numbers.items(numbers.fields(found).get("tokens"))]
        if not tokens or None in tokens:
            raise ServerError(_("{source} sends no tokens", source=self.facts.source))
        return [each for each in tokens if each is not None]

    def tokens(self, ids: Sequence[int]) -> list[Listed]:
        """Return what ids stand for; the bytes of a part of a character stay unknown."""
        found = []
        for token in ids:
            answer = numbers.fields(self.connection.post("/detokenize", {"tokens": [token]}))
            text = numbers.text(answer.get("content"))
            data = None if "\ufffd" in text else tuple(text.encode()) or None
            found.append(Listed(text=text or f"#{token}", bytes=data, id=token))
        return found

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, parse_special: bool
    ) -> Rendered | None:
        """Return the prompt of a conversation; names of special tokens always mean the tokens."""
        del parse_special
        talk = [{"role": each.role, "content": each.content} for each in messages]
        more = {"chat_template_kwargs": dict(variables)} if variables else {}
        answer = self.connection.post("/apply-template", {"messages": talk, **more})
        prompt = numbers.text(numbers.fields(answer).get("prompt"))
        found = self.tokenize(prompt, add_special=True, parse_special=True) or []
        ids = [each.id for each in found if each.id is not None]
        start = self.facts.start_ids
        if start and ids[:2] == [start[0]] * 2:  # the template writes the start token too
            del ids[0]
        return Rendered(ids=tuple(ids))

    def request(self, job: Job) -> tuple[str, Json]:
        """Return a request of `/completion`."""
        sampling = job.sampling
        return "/completion", {
            "prompt": list(job.ids) or job.text,
            "n_predict": job.max_tokens,
            "n_probs": job.n_listed,
            "temperature": sampling.temp,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repeat_last_n": -1,  # of the whole text
            "samplers": _SAMPLERS,
            "seed": job.seed,
            "stop": list(job.stop),
            "return_tokens": True,
            "preserved_tokens": list(THOUGHT_TAGS),  # text, whatever the model's file says
            "stream": True,
            **self.more(job),
        }

    def part(self, event: Any, job: Job) -> Part:
        """Return what an event brings."""
        del job
        found = numbers.fields(event)
        finish = numbers.text(found.get("stop_type")) or "stop" if found.get("stop") is True else ""
        return Part(
            text=numbers.text(found.get("content")),
            entries=numbers.entries(found.get("completion_probabilities"), exact_bytes=True),
            finish="length" if finish == "limit" else finish,
        )

    def distribution(
        self, ids: Sequence[int], n_listed: int, interrupted: Callable[[], bool]
    ) -> Entry | None:
        """Return the likeliest next tokens, also where the text ends here."""
        path, body = self.request(Job(ids=ids, n_listed=n_listed))
        found = self.connection.post(path, body | {"stream": False}, interrupted)
        listed = numbers.fields(found).get("completion_probabilities")
        return next(iter(numbers.entries(listed, exact_bytes=True)), None)

    def score(
        self, ids: Sequence[int], since: int, n_listed: int, interrupted: Callable[[], bool]
    ) -> list[Entry | None]:
        """Return each token of a text from position `since` on: a request for each.

        A token that is not among the likeliest is looked for among all.
        """
        found = list[Entry | None]()
        for position in range(since, len(ids)):
            for most in (max(n_listed, _FEW), self.facts.n_listed):
                listed = self.distribution(ids[:position], most, interrupted)
                top = listed.top if listed else ()
                place = next((n for n, each in enumerate(top) if each.id == ids[position]), None)
                if place is not None:
                    break
            found.append(
                None if place is None else Entry(token=top[place], top=top, rank=place + 1)
            )
        return found


def _piece(value: Any) -> Listed | None:
    """Return a token of `/tokenize`: its piece is a text, or bytes that are none."""
    found = numbers.fields(value)
    token, piece = numbers.token_id(found.get("id")), found.get("piece")
    data = tuple(piece.encode()) if isinstance(piece, str) else numbers.byte_values(piece)
    if token is None or data is None:
        return None
    return Listed(text=bytes(data).decode("utf-8", "replace"), bytes=data or None, id=token)
