"""What a request says of the form of an answer: whether it has thoughts, and where they stand."""

import json
from collections.abc import Mapping
from typing import Any

from minillm_repl.chat.thinking import parse_variables
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
