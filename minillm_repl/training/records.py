"""Records become documents: what their fields mean, and lines and arrays of JSON."""

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import parse_json
from minillm_repl.training.documents import Document, Repairs, normalise_nfc

MAX_RECORD = 64 << 20  # characters of one record
# A quote alone begins a string whose end is not read yet.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},"]', re.DOTALL)
_TEXT_FIELDS = ("text", "document", "sentence", "본문", "텍스트", "문장")
_PROMPT_FIELDS = ("prompt", "question", "instruction", "user", "q", "질문")
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


def record_kind(names: list[str]) -> str:
    """Return what a record with fields of these names is: `messages`, `text`, `pair`, `turn`;
    empty if unclear.
    """
    normalised = [name.strip().casefold() for name in names]
    if "messages" in normalised:
        return "messages"
    if "text" in normalised:
        return "text"
    # Exactly one of each: with two that could be meant, nothing is guessed.
    if all(
        sum(name in normalised for name in side) == 1
        for side in (_PROMPT_FIELDS, _COMPLETION_FIELDS)
    ):
        return "pair"
    if {"role", "content"} <= set(normalised):
        return "turn"
    return "text" if sum(name in normalised for name in _TEXT_FIELDS) == 1 else ""


def parse_record(value: Any, label: str, repairs: Repairs) -> Document:
    """Return the document that a JSON value is. Raises UserError that names it as `label`."""
    fields = {"text": value} if isinstance(value, str) else value
    if isinstance(fields, dict):
        fields = {name.strip().casefold(): each for name, each in fields.items()}
        document = _PARSERS.get(record_kind(list(fields)), _no_document)(fields, label, repairs)
        if document:
            return document
    shown = safe_line(json.dumps(value, ensure_ascii=False))
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
    match fields["messages"]:
        case list(messages) if messages:
            return Document(
                messages=tuple(parse_message(message, label, repairs) for message in messages)
            )
    return None


def _pair_document(fields: dict[str, Any], label: str, repairs: Repairs) -> Document | None:
    prompt = _first_field(fields, _PROMPT_FIELDS)
    input_text = fields.get("input") or ""  # Alpaca's: what the instruction is about
    completion = _first_field(fields, _COMPLETION_FIELDS)
    if not all(isinstance(each, str) for each in (prompt, input_text, completion)):
        return None
    turns = [
        ("user", f"{prompt}\n\n{input_text}" if input_text else prompt),
        ("assistant", completion),
    ]
    if fields.get("system"):
        turns.insert(0, ("system", fields["system"]))
    return _conversation_document(
        {"messages": [{"role": role, "content": text} for role, text in turns]}, label, repairs
    )


_PARSERS: dict[str, Callable[[dict[str, Any], str, Repairs], Document | None]] = {
    "text": _text_document,
    "messages": _conversation_document,
    "pair": _pair_document,
}


def _first_field(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _normalise_newlines(text: str, repairs: Repairs) -> str:
    repairs.normalised_newlines |= "\r" in text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_message(message: Any, label: str, repairs: Repairs) -> Message:
    """Return a turn of a conversation. Raises UserError that names it as `label`."""
    match message:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return Message(role, normalise_nfc(_normalise_newlines(content, repairs), repairs))
    shown = safe_line(json.dumps(message, ensure_ascii=False))
    raise UserError(
        _(
            '{what}: a message needs "role" (system, user or assistant) and "content" (a '
            "string), not {shown:.60}",
            what=label,
            shown=shown,
        )
    )


# -- JSON


def json_lines(chunks: Iterator[str], name: str, repairs: Repairs) -> Iterator[Document]:
    """Yield a document for each line of JSON that is not blank.

    Raises UserError naming the line.
    """
    for number, line in enumerate(iter_lines(chunks, name), 1):
        if line.strip():
            label = _("line {number:,} of {file}", number=number, file=name)
            yield parse_record(parse_json(line, label), label, repairs)


def iter_lines(chunks: Iterator[str], name: str) -> Iterator[str]:
    """Yield a text line by line, with the newlines. Raises UserError for a line without end."""
    pending, length, number = list[str](), 0, 1
    for chunk in chunks:
        for segment in io.StringIO(chunk):
            pending.append(segment)
            length += len(segment)
            if length >= MAX_RECORD:
                label = _("line {number:,} of {file}", number=number, file=name)
                raise UserError(
                    _("{what} is longer than {size} MiB", what=label, size=MAX_RECORD >> 20)
                )
            if segment.endswith("\n"):
                yield "".join(pending)
                pending, length, number = [], 0, number + 1
    if pending:
        yield "".join(pending)


def json_array(chunks: Iterator[str], name: str, repairs: Repairs) -> Iterator[Document]:
    """Yield a document for each value of an array, or for the one value of a file.

    Raises UserError naming it.
    """
    values = _array_values(chunks, name)  # one record at a time: the file may exceed memory
    if next(values) != "[":
        yield parse_record(parse_json("".join(values), name), name, repairs)
        return
    for number, text in enumerate(values, 1):
        label = _("record {number:,} of {file}", number=number, file=name)
        yield parse_record(parse_json(text, label), label, repairs)


def _array_values(chunks: Iterator[str], name: str) -> Iterator[str]:
    """Yield `[`, and then the values of an array as text; or what else the file begins with, and
    then all of it.
    """
    text = next(chunks, "")
    if not text.lstrip().startswith("["):
        yield ""
        length = 0
        for piece in chain((text,), chunks):
            length += len(piece)
            _check_length(length, name)
            yield piece
        return
    yield "["
    text, start, position, depth = text.lstrip()[1:], 0, 0, 0
    chunk: str | None = ""
    while chunk is not None:
        text, start, position = text[start:] + chunk, 0, position - start
        for match in _JSON_TOKEN.finditer(text, position):
            lexeme = match.group()
            if lexeme == '"':
                break  # Its end is in the next chunk, with which it is read again.
            position = match.end()
            if depth == 0 and lexeme in ",]":  # between two records, or after the last
                value = text[start : match.start()].strip()
                start = position
                if value or lexeme == ",":
                    yield value
                if lexeme == "]":
                    _check_end(text[position:], chunks, name)
                    return
            depth += (lexeme in "[{") - (lexeme in "]}")
        _check_length(len(text) - start, name)
        chunk = next(chunks, None)
    raise UserError(_("{file} is incomplete: its JSON array does not end", file=name))


def _check_length(length: int, name: str) -> None:
    if length > MAX_RECORD:
        raise UserError(
            _("a record of {file} is larger than {size} MiB", file=name, size=MAX_RECORD >> 20)
        )


def _check_end(rest: str, chunks: Iterator[str], name: str) -> None:
    if rest.strip() or any(chunk.strip() for chunk in chunks):
        raise UserError(
            _("{file} continues after its JSON array: does it hold two files?", file=name)
        )
