"""What a request says of the form of an answer: thoughts, and a format that it obeys."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from minillm_repl.chat.thinking import parse_variables
from minillm_repl.generate.constraint import ANY_OBJECT, MAX_FILE, FormatSource
from minillm_repl.serve import RequestError

_MAX_THOUGHT = 1_000_000  # tokens


def template_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request sets of the chat template: variables, and whether the model thinks.

    Raises RequestError.
    """
    found: dict[str, Any] = {}
    variables, think = body.get("chat_template_kwargs"), body.get("think")
    if variables is not None:
        found["template"] = _words(variables)
    if isinstance(think, bool):
        found["think"] = "on" if think else "off"
    elif isinstance(think, int) and 0 <= think <= _MAX_THOUGHT:
        found["think"] = think
    elif think is not None:
        raise RequestError(400, "think must be true, false or a number of tokens", "think")
    return found


def _words(variables: object) -> tuple[str, ...]:
    """Return variables as the setting `template` has them."""
    name = "chat_template_kwargs"
    if not isinstance(variables, dict):
        raise RequestError(400, f"{name} must be an object: names and values", name)
    try:
        return parse_variables([f"{key}={json.dumps(value)}" for key, value in variables.items()])
    except (ValueError, RecursionError):
        raise RequestError(400, f"{name} has a name that no variable can have", name) from None


def are_thoughts_apart(body: Mapping[str, Any]) -> bool:
    """Tell whether thoughts come as `reasoning_content`, or in the answer with their tags.

    Raises RequestError.
    """
    name = "reasoning_format"
    wish = body.get(name) or "auto"
    if wish not in ("auto", "deepseek", "none"):
        raise RequestError(400, f"{name} must be auto, deepseek or none", name)
    return bool(wish != "none")


def parse_format(body: Mapping[str, Any]) -> FormatSource | None:
    """Return the format that a request asks for: OpenAI's `response_format`, or llama.cpp's
    `json_schema` and `grammar`; None without any.

    Raises RequestError, also for more than one.
    """
    found = [
        source
        for name, read in _FORMATS.items()
        if body.get(name) is not None and (source := read(name, body[name]))
    ]
    if len(found) > 1:
        names = " and ".join(each.name for each in found)
        raise RequestError(400, f"an answer has one format, not {names}", found[1].name)
    return found[0] if found else None


def _response_format(name: str, value: object) -> FormatSource | None:
    fields = value if isinstance(value, dict) else {}
    match fields:
        case {"type": "text"}:
            return None
        case {"type": "json_object", "schema": dict(schema)}:  # llama.cpp's
            return _schema(name, schema)
        case {"type": "json_object"}:
            return FormatSource("json", ANY_OBJECT, name)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return _schema(name, schema)
        case {"type": "json_schema", "schema": dict(schema)}:
            return _schema(name, schema)
    raise RequestError(
        400, f"{name} has the type text, json_object, or json_schema and its json_schema", name
    )


def _schema(name: str, schema: object) -> FormatSource:
    if not isinstance(schema, dict):
        raise RequestError(400, f"{name} must be an object: a JSON Schema", name)
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise RequestError(400, f"{name} is too deep", name) from None
    return _grammar(name, text, "json")


def _grammar(name: str, text: object, kind: Literal["json", "grammar"] = "grammar") -> FormatSource:
    if not isinstance(text, str):
        raise RequestError(400, f"{name} must be a text: a grammar", name)
    if len(text) > MAX_FILE:
        raise RequestError(400, f"{name} has more than {MAX_FILE:,} characters", name)
    return FormatSource(kind, text, name)


_FORMATS: dict[str, Callable[[str, Any], FormatSource | None]] = {
    "response_format": _response_format,
    "json_schema": _schema,
    "grammar": _grammar,
}
