"""Finds out which server answers at an address, and what it really tells of its model.

A name is not believed: each server is asked for a few tokens, and what comes back counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.generate import Sampling, Stage
from minillm_repl.language import _
from minillm_repl.remote import Entry, Facts, Job, Json, Listed, Part, numbers
from minillm_repl.remote.engines import Engine, llamacpp, ollama, openai, own, sglang, vllm
from minillm_repl.remote.engines.responses import ResponsesEngine
from minillm_repl.remote.http import Connection, ServerError
from minillm_repl.safetext import safe_line

_MAX_MODELS = 1_000
_TEXT = "The quick brown fox jumps over the"
_TALK = (Message("user", "Hi"),)
_TEMPERATURES = (0.5, 1.5)  # between which a distribution after the samplers differs
_TRIED_TOKENS = 4  # the first may have no text
_NOT_THERE = (404, 405, 501)  # statuses of a route that a server does not have
_LEAST_GAP = 0.05  # nats between the likeliest token and the last that is listed
_NOISE = 0.1  # of such a gap, by which two answers of the same server may differ


def list_models(connection: Connection) -> list[Json]:
    """Return the models of a server, as it describes them. Raises ServerError."""
    found = numbers.items(numbers.fields(connection.get("/v1/models")).get("data"))
    models = map(numbers.fields, found[:_MAX_MODELS])
    return [each for each in models if numbers.text(each.get("id"))]


def open_engine(connection: Connection, name: str = "") -> tuple[Engine, tuple[str, ...]]:
    """Return the engine of a server, for the model `name` or its first, and its models' names.

    Raises UserError.
    """
    models = list_models(connection)
    model = _choose(connection, models, name)
    names = tuple(each["id"] for each in models)
    if model.get("owned_by") == own.NAME:
        return own.OwnEngine(connection, own.facts(connection, model)), names
    return _tried(_recognise(connection, model)), names


def _choose(connection: Connection, models: list[Json], name: str) -> Json:
    """Return the model of a name, or the first. Raises UserError that names those there are."""
    server = connection.address.name
    if not models:
        raise ServerError(_("{server} has no model", server=server))
    named = [each for each in models if each["id"] == name]
    if not name or named:
        return (named or models)[0]
    names = ", ".join(safe_line(each["id"][:80]) for each in models[:10])
    raise UserError(
        _("{server} has no model {name}: it has {names}",
          server=server, name=safe_line(name), names=names)
    )  # fmt: skip


def _recognise(connection: Connection, model: Json) -> Engine:
    """Return the engine of a server by the routes that it has."""
    properties = _look(connection, "/props")
    if "default_generation_settings" in properties:
        return llamacpp.LlamaCppEngine(connection, llamacpp.facts(connection, model, properties))
    if model.get("owned_by") == "vllm" and "version" in _look(connection, "/version"):
        return vllm.VllmEngine(connection, vllm.facts(connection, model))
    if "model_path" in (_look(connection, "/get_model_info") or _look(connection, "/model_info")):
        return sglang.SglangEngine(connection, sglang.facts(connection, model))
    if "version" in _look(connection, "/api/version"):
        return ollama.OllamaEngine(connection, ollama.facts(connection, model))
    return openai.OpenAIEngine(connection, openai.facts(connection, model))


def _look(connection: Connection, path: str) -> Json:
    """Return the JSON object of a page; empty for a server that does not have it."""
    try:
        return numbers.fields(connection.get(path))
    except ServerError:
        return {}


# -- what really comes back


@dataclass(frozen=True)
class _Trial:
    """What a server answered to one kind of question."""

    entry: Entry | None  # of the first token with a text
    asked: int  # tokens that it was asked to list

    @property
    def n_listed(self) -> int:
        """How many tokens it lists."""
        if self.entry is None or self.entry.token.logprob is None:
            return 0
        return max(min(len(self.entry.top), self.asked), 1)


def _tried(engine: Engine) -> Engine:
    """Return the engine with its facts as they have shown. Raises ServerError if nothing works."""
    facts = engine.facts
    ids = _text_ids(engine)
    text = _try(engine, Job(ids=ids, text="" if ids else _TEXT)) if facts.completes else None
    chat = _try(engine, Job(messages=_TALK)) if facts.chats else None
    if text is None and chat is None:
        engine, chat = _try_responses(engine)
    found = replace(
        facts,
        completes=text is not None,
        chats=chat is not None,
        n_listed=_listed(facts, text) if text else 0,
        n_listed_chat=chat.n_listed if chat else 0,
        stage=_find_stage(engine, ids, text, chat) or facts.stage,
    )
    entry = text.entry if text else None
    has_ids = facts.has_ids and bool(ids) and entry is not None and entry.token.id is not None
    engine.facts = replace(found, has_ids=has_ids, scores_prompt=facts.scores_prompt and has_ids)
    return engine


def _listed(facts: Facts, trial: _Trial) -> int:
    """Return the most tokens that a server lists: what it claims, if it has listed all asked."""
    is_all = trial.n_listed == min(openai.MOST_LISTED, facts.n_listed)
    return facts.n_listed if is_all else trial.n_listed


def _text_ids(engine: Engine) -> tuple[int, ...]:
    if not engine.facts.has_ids:
        return ()
    found = engine.tokenize(_TEXT, add_special=True, parse_special=False) or []
    return tuple(each.id for each in found if each.id is not None)


def _try(engine: Engine, job: Job) -> _Trial | None:
    """Return what a server answers; None if it does not have the route. Raises ServerError."""
    for asked in (openai.MOST_LISTED, 5, 0):
        try:
            parts = _few_parts(engine, job, asked)
            if not any(part.text or part.thought or part.entries or part.finish for part in parts):
                return None  # an answer of another shape
            return _Trial(_first_entry(parts), asked)
        except ServerError as error:
            if error.status in _NOT_THERE:
                return None
            if "max_completion_tokens" in str(error) and isinstance(engine, openai.OpenAIEngine):
                engine.limit_field = "max_completion_tokens"
            if not error.status or error.status in (401, 403):
                raise
            last = error
    if last.status < 500:
        return None
    raise last


def _few_parts(engine: Engine, job: Job, n_listed: int, temperature: float = 1.0) -> list[Part]:
    sampling = Sampling(temp=temperature)
    few = replace(job, max_tokens=_TRIED_TOKENS, n_listed=n_listed, seed=1, sampling=sampling)
    return list(engine.parts(few))


def _first_entry(parts: Sequence[Part]) -> Entry | None:
    return next((entry for part in parts for entry in part.entries), None)


def _try_responses(engine: Engine) -> tuple[Engine, _Trial]:
    name = engine.connection.address.name
    other = ResponsesEngine(engine.connection, engine.facts)
    trial = _try(other, Job(messages=_TALK))
    if trial is None:
        raise ServerError(_("{server} answers neither texts nor messages", server=name))
    return other, trial


def _find_stage(
    engine: Engine, ids: Sequence[int], text: _Trial | None, chat: _Trial | None
) -> Stage | None:
    """Tell whether the probabilities change with the temperature; None if that cannot be seen."""
    if text and text.n_listed > 1:
        job, trial = Job(ids=ids, text="" if ids else _TEXT), text
    elif chat and chat.n_listed > 1:
        job, trial = Job(messages=_TALK), chat
    else:
        return None
    entries = [_first_entry(_few_parts(engine, job, trial.asked, each)) for each in _TEMPERATURES]
    if None in entries:
        return None
    return stage_of(*(each.top for each in entries if each))


def stage_of(cold: Sequence[Listed], hot: Sequence[Listed]) -> Stage | None:
    """Return what the lists of two temperatures are of, by the gap between the same two tokens."""
    colds, hots = _by_name(cold), _by_name(hot)
    shared = [each for each in colds if each in hots]
    if len(shared) < 2:
        return None
    gap = colds[shared[0]] - colds[shared[-1]]
    other = hots[shared[0]] - hots[shared[-1]]
    if not _LEAST_GAP < gap < 1e3:
        return None
    if abs(gap - other) < _NOISE * gap:
        return "raw"
    ratio = _TEMPERATURES[1] / _TEMPERATURES[0]
    return "sampled" if abs(gap - ratio * other) < _NOISE * gap else None


def _by_name(top: Sequence[Listed]) -> dict[object, float]:
    """Return the log-probabilities of a list, by id or text."""
    return {
        each.text if each.id is None else each.id: each.logprob
        for each in top
        if each.logprob is not None
    }
