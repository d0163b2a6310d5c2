"""What the fields of a record mean: a text, messages, a prompt and its answer, a turn."""

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training.documents import Document, Repairs, normalise_nfc

_TEXT_FIELDS = ("text", "document", "sentence", "본문", "텍스트", "문장")
_PROMPT_FIELDS = ("prompt", "question", "instruction", "query", "user", "q", "질문")
_COMPLETION_FIELDS = (
    "completion",
    "answer",
    "response",
    "output",
    "assistant",
    "a",
    "답변",
    "대답",
)
_LIST_FIELDS = ("messages", "conversations", "conversation")
JSON_FIELDS = (*_LIST_FIELDS, "chosen")  # a table holds them as JSON
# What a role is called elsewhere: by ShareGPT, Gemini, Llama 3 and OpenAI.
_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tools", "function", "observation", "ipython"), "tool"),
}
_TEXT_PARTS = ("text", "input_text", "output_text")  # OpenAI's parts of a content


def record_kind(names: list[str]) -> str:
    """Return what a record with fields of these names is: `messages`, `preference`, `text`,
    `pair`, `turn`; empty if unclear.
    """
    known = {name.strip().casefold() for name in names}
    prompts, completions = (
        sum(name in known for name in side) for side in (_PROMPT_FIELDS, _COMPLETION_FIELDS)
    )
    # Alpaca's `input` belongs to an instruction, and is the prompt where there is none.
    prompts = prompts or int("input" in known)
    kinds = {
        "messages": known & {"messages", "conversations"},
        "preference": known >= {"chosen", "rejected"},
        "text": "text" in known,
        # Exactly one of each: with two that could be meant, nothing is guessed.
        "pair": prompts == completions == 1,
        "turn": known >= {"role", "content"},
    }
    kind = next((kind for kind, applies in kinds.items() if applies), "")
    if not kind and "conversation" in known:
        return "messages"
    return kind or ("text" if sum(name in known for name in _TEXT_FIELDS) == 1 else "")


def parse_record(value: Any, label: str, repairs: Repairs) -> Document:
    """Return the document that a JSON value is. Raises UserError that names it as `label`."""
    fields = {"text": value} if isinstance(value, str) else value
    if isinstance(fields, dict):
        fields = {name.strip().casefold(): each for name, each in fields.items()}
        document = _PARSERS.get(record_kind(list(fields)), _no_document)(fields, label, repairs)
        if document:
            repairs.has_tool_descriptions |= bool(document.messages and fields.get("tools"))
            return document
    shown = safe_line(json.dumps(value, ensure_ascii=False, default=str))
    raise UserError(
        _(
            '{what} must be a string, or an object with "text" (a string), "messages" (a '
            'list), or "prompt" and'
            ' "completion" (strings), not {shown:.60}',
            what=label,
            shown=shown,
        )
    )


def _no_document(_fields: dict[str, Any], _label: str, _repairs: Repairs) -> None:
    """Return no document: the meaning is not clear."""


def _text_document(fields: dict[str, Any], _label: str, repairs: Repairs) -> Document | None:
    match _first_field(fields, _TEXT_FIELDS):
        case str(text):
            return Document(normalise_nfc(_normalise_newlines(text, repairs), repairs))
    return None


def _conversation_document(fields: dict[str, Any], label: str, repairs: Repairs) -> Document | None:
    match _first_field(fields, _LIST_FIELDS):
        case list(messages) if messages:
            return _conversation([*_system(fields), *messages], label, repairs)
    return None


def _pair_document(fields: dict[str, Any], label: str, repairs: Repairs) -> Document | None:
    prompt = _prompt(fields)
    completion = _turns(_first_field(fields, _COMPLETION_FIELDS), "assistant")
    return _conversation([*prompt, *completion], label, repairs) if prompt and completion else None


def _preference_document(fields: dict[str, Any], label: str, repairs: Repairs) -> Document | None:
    """Return the chosen answer: training here follows examples, and does not compare two."""
    prompt, chosen = _prompt(fields), _turns(fields["chosen"], "assistant")
    # A chosen conversation may begin with its own prompt.
    if chosen[: len(prompt)] == prompt:
        prompt = []
    if not chosen or (isinstance(fields["chosen"], str) and not prompt):
        return None
    repairs.has_preferences = True
    return _conversation([*prompt, *chosen], label, repairs)


_PARSERS: dict[str, Callable[[dict[str, Any], str, Repairs], Document | None]] = {
    "text": _text_document,
    "messages": _conversation_document,
    "preference": _preference_document,
    "pair": _pair_document,
}


def _first_field(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _prompt(fields: dict[str, Any]) -> list[Any]:
    """Return the messages before an answer; none if there is no prompt, or one of another type."""
    prompt = _first_field(fields, (*_PROMPT_FIELDS, "input"))
    more = fields.get("input") or ""  # Alpaca's: what the instruction is about
    if isinstance(prompt, str) and isinstance(more, str) and more not in ("", prompt):
        prompt = f"{prompt}\n\n{more}"
    elif not isinstance(more, str):
        return []
    turns = _turns(prompt, "user")
    return [*_system(fields), *_history(fields), *turns] if turns else []


def _turns(value: Any, role: str) -> list[Any]:
    """Return a text as a message, or a list of messages as it is; none of another type."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return list(value) if isinstance(value, list) else []


def _system(fields: dict[str, Any]) -> list[Any]:
    return _turns(fields.get("system") or [], "system")


def _history(fields: dict[str, Any]) -> Iterator[Any]:
    """Yield the turns before a prompt, given as pairs of texts."""
    history = fields.get("history")
    for pair in history if isinstance(history, list) else []:
        for role, text in zip(("user", "assistant"), pair, strict=False):
            yield {"role": role, "content": text}


def _conversation(messages: list[Any], label: str, repairs: Repairs) -> Document:
    return Document(messages=tuple(parse_message(message, label, repairs) for message in messages))


def _normalise_newlines(text: str, repairs: Repairs) -> str:
    repairs.normalised_newlines |= "\r" in text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_message(message: Any, label: str, repairs: Repairs) -> Message:
    """Return a turn of a conversation. Raises UserError that names it as `label`."""
    match message:
        case {"tool_calls": [_, *_]}:
            raise UserError(
                _(
                    "{what}: a message has tool_calls, which cannot be learnt here; write them "
                    "into its content",
                    what=label,
                )
            )
        case {"role": str(role), "content": content} | {"from": str(role), "value": content}:
            role = _ROLES.get(role.strip().casefold(), "")
            text = _join_parts(content, label)
            if role and text is not None:
                text = normalise_nfc(_normalise_newlines(text, repairs), repairs)
                return Message(cast("Any", role), text)
    shown = safe_line(json.dumps(message, ensure_ascii=False, default=str))
    raise UserError(
        _(
            '{what}: a message needs "role" (system, user, assistant or tool) and "content" (a '
            "string), not {shown:.60}",
            what=label,
            shown=shown,
        )
    )


def _join_parts(content: Any, label: str) -> str | None:
    """Return the text of a content: a string, or OpenAI's list of parts; None of another type.

    Raises UserError for a part that is no text.
    """
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = list[str]()
    for part in content:
        match part:
            case str(text):
                texts.append(text)
            case {"type": str(kind), "text": str(text)} if kind in _TEXT_PARTS:
                texts.append(text)
            case {"type": str(kind)}:
                raise UserError(
                    _(
                        "{what}: a message has a part of type {kind:.40}; only text is learnt",
                        what=label,
                        kind=safe_line(kind),
                    )
                )
            case _:
                return None
    return "".join(texts)
