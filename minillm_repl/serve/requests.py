"""What a client asks for: a JSON body, checked field by field, becomes a frozen request."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from minillm_repl.chat import Message
from minillm_repl.generate import NO_RULES, TokenRules
from minillm_repl.generate.constraint import FormatSource
from minillm_repl.repl.settings import DEFAULT_ANSWER_TOKENS, DEFAULT_COMPLETION_TOKENS, Settings
from minillm_repl.serve import RequestError
from minillm_repl.serve.form import are_thoughts_apart, parse_format, template_settings
from minillm_repl.settings import parse_number, specs

Prompt = str | tuple[int, ...]

_MAX_PROMPTS = 64  # in one request
_MAX_STOPS = 16
_MAX_CANDIDATES = 4_000_000  # listed in one answer, about 400 MB of JSON
_SAMPLERS = {  # a field of a request, and the setting that it is
    "temperature": "temp",
    "top_p": "top-p",
    "top_k": "top-k",
    "min_p": "min-p",
    "repetition_penalty": "repeat-penalty",
    "repeat_penalty": "repeat-penalty",
    "seed": "seed",
    # Those that only some servers have, under the names of the settings and those of llama.cpp.
    "presence_penalty": "presence-penalty",
    "frequency_penalty": "frequency-penalty",
    "typical_p": "typical-p",
    "top_n_sigma": "top-n-sigma",
    "xtc": "xtc",
    "xtc_probability": "xtc",
    "xtc_threshold": "xtc-threshold",
    "dry": "dry",
    "dry_multiplier": "dry",
    "dry_base": "dry-base",
    "dry_length": "dry-length",
    "dry_allowed_length": "dry-length",
    "mirostat": "mirostat",
    "mirostat_rate": "mirostat-rate",
}
# Fields that change an answer, each with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
}


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Texts to continue, or a conversation to answer; of a conversation, there is one."""

    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] = ()
    settings: Settings
    max_tokens: int
    n_candidates: int | None  # listed for each token; None: no probabilities at all
    echo: bool = False  # the answer begins with the prompt
    stream: bool = False
    usage_at_end: bool = False  # a stream ends with the numbers of tokens
    form: FormatSource | None = None  # the format of the answer, if the request has one
    rules: TokenRules = NO_RULES  # what the request says of tokens, as ids of the model
    special: bool = False  # names of special tokens in a prompt mean the tokens
    thoughts_apart: bool = False  # else they stand in the answer, with their tags


def parse_body(data: bytes) -> Mapping[str, Any]:
    """Return the JSON object of a body. Raises RequestError."""
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError(400, "the body is not a JSON object")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def parse_completion(body: Mapping[str, Any], defaults: Settings, vocab_size: int) -> Completion:
    """Return what `/v1/completions` is asked for. Raises RequestError."""
    listed = _integer(body, "logprobs", None, 0, vocab_size)
    maximum = defaults.max_tokens or DEFAULT_COMPLETION_TOKENS
    return _checked(
        Completion(
            prompts=_prompts(body.get("prompt"), vocab_size),
            settings=_settings(body, defaults, vocab_size),
            max_tokens=_or_default(_integer(body, "max_tokens", None, 0, 1_000_000), maximum),
            n_candidates=listed,
            echo=_flag(body, "echo"),
            stream=_flag(body, "stream"),
            usage_at_end=_wants_usage(body),
            form=parse_format(body),
            special=defaults.special,
        )
    )


def parse_chat(body: Mapping[str, Any], defaults: Settings, vocab_size: int) -> Completion:
    """Return what `/v1/chat/completions` is asked for. Raises RequestError."""
    listed = _integer(body, "top_logprobs", 0, 0, vocab_size)
    maximum = _integer(body, "max_tokens", None, 1, 1_000_000)
    maximum = _integer(body, "max_completion_tokens", maximum, 1, 1_000_000)
    return _checked(
        Completion(
            messages=parse_chat_messages(body),
            settings=parse_template(body, _settings(body, defaults, vocab_size)),
            max_tokens=_or_default(maximum, defaults.max_tokens or DEFAULT_ANSWER_TOKENS),
            n_candidates=listed if _flag(body, "logprobs") else None,
            stream=_flag(body, "stream"),
            usage_at_end=_wants_usage(body),
            form=parse_format(body),
            special=defaults.special,
            thoughts_apart=are_thoughts_apart(body),
        )
    )


def parse_template(body: Mapping[str, Any], defaults: Settings) -> Settings:
    """Return settings with what a request says of the chat template. Raises RequestError."""
    found = template_settings(body)
    if "template" in found:  # a later word counts
        found["template"] = (*defaults.template, *found["template"])
    return replace(defaults, **found)


def parse_chat_messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the messages of a conversation; the last is the user's. Raises RequestError."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages must be a list of messages", "messages")
    found = tuple(map(_message, messages))
    if found[-1].role != "user":
        raise RequestError(400, "the last message must have the role user", "messages")
    return found


def _message(message: object) -> Message:
    if not isinstance(message, dict):
        raise RequestError(400, "each message must be an object", "messages")
    role, content = message.get("role"), message.get("content")
    if role == "developer":  # OpenAI's newer name
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise RequestError(400, "a message has the role system, user or assistant", "messages")
    if isinstance(content, list):
        content = "".join(map(_text_part, content))
    if not isinstance(content, str):
        raise RequestError(400, "the content of a message must be text", "messages")
    return Message(role, content)


def _text_part(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise RequestError(400, "only parts of the type text can be read", "messages")
    return text


def _prompts(prompt: object, vocab_size: int) -> tuple[Prompt, ...]:
    """Return a prompt, or a list of them, as one list: texts, or ids."""
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt and all(_is_integer(each) for each in prompt):
        return (token_ids(prompt, "prompt", vocab_size),)
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= _MAX_PROMPTS:
        raise RequestError(400, f"prompt must be a text, ids, or 1 to {_MAX_PROMPTS} of them")
    return tuple(
        each if isinstance(each, str) else token_ids(each, "prompt", vocab_size) for each in prompt
    )


def token_ids(value: object, name: str, vocab_size: int) -> tuple[int, ...]:
    """Return a list of ids of the vocabulary. Raises RequestError."""
    if not isinstance(value, list) or not all(
        _is_integer(each) and 0 <= each < vocab_size for each in value
    ):
        raise RequestError(400, f"{name} must be a list of ids from 0 to {vocab_size - 1}", name)
    return tuple(value)


def _settings(body: Mapping[str, Any], defaults: Settings, vocab_size: int) -> Settings:
    """Return the samplers and stop strings: those of the request over those of the program."""
    for name, neutral in _UNSUPPORTED.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise RequestError(400, f"{name} is not supported", name)
    values: dict[str, Any] = {}
    for name, setting in _SAMPLERS.items():
        value = body.get(name)
        if value is None:
            continue
        spec = specs(Settings)[setting]
        try:
            values[setting.replace("-", "_")] = parse_number(spec, value)
        except ValueError:
            raise RequestError(400, f"{name} has a value that it cannot have", name) from None
    if body.get("logit_bias") is not None:
        values["bias"] = _biases(body["logit_bias"], vocab_size)
    stop = body.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(map(_is_text, stops)):
            raise RequestError(400, f"stop must be a text or up to {_MAX_STOPS} texts", "stop")
        values["stop"] = tuple(stops)
    return replace(defaults, **values)


def _biases(value: object, vocab_size: int) -> tuple[str, ...]:
    """Return what is added to the logits of ids, as the setting has it."""
    name = "logit_bias"
    if not isinstance(value, dict):
        raise RequestError(400, f"{name} must be an object: ids and numbers", name)
    for token, number in value.items():
        is_id = token.isdecimal() and len(token) < 10 and int(token) < vocab_size
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_id or not is_number or not -100 <= number <= 100:
            raise RequestError(400, f"{name} has ids, and numbers from -100 to 100", name)
    return tuple(f"#{token}={number!r}" for token, number in value.items())


def _wants_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "stream_options must be an object", "stream_options")
    return _flag(options, "include_usage")


def _checked(completion: Completion) -> Completion:
    listed = (completion.n_candidates or 0) * completion.max_tokens * len(completion.prompts or "1")
    if listed > _MAX_CANDIDATES:
        raise RequestError(400, "too many log-probabilities are asked for: ask for fewer tokens")
    if completion.stream and len(completion.prompts) > 1:
        raise RequestError(400, "a stream has one prompt", "prompt")
    return completion


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"{name} must be true or false", name)
    return bool(value)


def _integer(
    body: Mapping[str, Any], name: str, default: int | None, low: int, high: int
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if not _is_integer(value) or not low <= value <= high:
        raise RequestError(400, f"{name} must be a whole number from {low} to {high}", name)
    return int(value)


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def text_field(body: Mapping[str, Any], *names: str) -> str:
    """Return the text under the first of these names. Raises RequestError."""
    found: Sequence[object] = [body[name] for name in names if name in body]
    if not found or not isinstance(found[0], str):
        raise RequestError(400, f"{names[0]} must be a text", names[0])
    return found[0]
