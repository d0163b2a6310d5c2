"""Records: lines of JSON, arrays of JSON and tables become documents."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, groupby
from typing import Any

from minillm_repl.chat.template import Message
from minillm_repl.checkpoint.formats.header import parse_json
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training.documents import Document, Repairs, normalise_nfc

_MAX_RECORD = 64 << 20  # characters of one record
# a quote alone begins a string that is not whole yet
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
_CONVERSATION_FIELDS = ("conversation", "conversation_id", "dialogue_id", "chat_id", "id", "대화")


def record_kind(names: list[str]) -> str:
    """Return what a record with fields of these names is: `messages`, `text`, `pair`, `turn`;
    empty if unclear.
    """
    normalised = [name.strip().casefold() for name in names]
    if "messages" in normalised:
        return "messages"
    if "text" in normalised:
        return "text"
    if all(
        sum(name in normalised for name in side) == 1
        for side in (_PROMPT_FIELDS, _COMPLETION_FIELDS)
    ):
        return "pair"
    if {"role", "content"} <= set(normalised):
        return "turn"
    return "text" if sum(name in normalised for name in _TEXT_FIELDS) == 1 else ""


def parse_record(value: Any, label: str, repairs: Repairs) -> Document:
    """Return the document that a JSON value is. Raises UserError naming it as `what`."""
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
                messages=tuple(_parse_message(message, label, repairs) for message in messages)
            )
    return None


def _pair_document(fields: dict[str, Any], label: str, repairs: Repairs) -> Document | None:
    prompt, input_text, completion = (
        _first_field(fields, _PROMPT_FIELDS),
        fields.get("input") or "",
        _first_field(fields, _COMPLETION_FIELDS),
    )
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


def _parse_message(message: Any, label: str, repairs: Repairs) -> Message:
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
            if length >= _MAX_RECORD:
                label = _("line {number:,} of {file}", number=number, file=name)
                raise UserError(
                    _("{what} is longer than {size} MiB", what=label, size=_MAX_RECORD >> 20)
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
    values = _array_values(chunks, name)
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
                break
            position = match.end()
            if depth == 0 and lexeme in ",]":
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
    if length > _MAX_RECORD:
        raise UserError(
            _("a record of {file} is larger than {size} MiB", file=name, size=_MAX_RECORD >> 20)
        )


def _check_end(rest: str, chunks: Iterator[str], name: str) -> None:
    if rest.strip() or any(chunk.strip() for chunk in chunks):
        raise UserError(
            _("{file} continues after its JSON array: does it hold two files?", file=name)
        )


# -- tables


def first_rows(head: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows that a text begins with, as the names of columns are compared, for as long
    as it is a table.
    """
    with suppress(csv.Error):
        for row in csv.reader(io.StringIO(head), delimiter=delimiter, strict=True):
            if row:
                yield _column_names(row)


def _column_names(row: list[str]) -> list[str]:
    return [name.strip().casefold() for name in row]


def table_rows(
    chunks: Iterator[str], name: str, repairs: Repairs, delimiter: str
) -> Iterator[Document]:
    """Yield a document for each row of a table whose first line names its columns.

    Raises UserError naming the line.
    """
    csv.field_size_limit(_MAX_RECORD)
    reader = csv.reader(iter_lines(chunks, name), delimiter=delimiter, strict=True)
    rows = _checked_rows(reader, name)
    names = _column_names(next(rows)[1])
    if record_kind(names) == "turn":
        yield from _table_conversations(rows, names, repairs)
        return
    for label, row in rows:
        fields: dict[str, Any] = dict(zip(names, row, strict=True))
        if record_kind(names) == "messages":
            fields["messages"] = parse_json(fields["messages"], label)
        yield parse_record(fields, label, repairs)


def _checked_rows(reader: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not empty, each with what to call it.

    Raises UserError for one that does not fit.
    """
    n_columns = 0
    try:
        for row in reader:
            label = _("line {number:,} of {file}", number=reader.line_num, file=name)
            n_columns = n_columns or len(row)
            if row and len(row) != n_columns:
                raise UserError(
                    _(
                        "{what} has {found} columns, but the first line has {names}",
                        what=label,
                        found=len(row),
                        names=n_columns,
                    )
                )
            if any(row):
                yield label, row
    except csv.Error as error:
        label = _("line {number:,} of {file}", number=reader.line_num, file=name)
        raise UserError(
            _(
                "{what} has a quote that is not closed or is out of place ({error:.80})",
                what=label,
                error=safe_line(str(error)),
            )
        ) from None


def _table_conversations(
    rows: Iterator[tuple[str, list[str]]], names: list[str], repairs: Repairs
) -> Iterator[Document]:
    """Yield a conversation for successive rows that have the same name or number of one."""
    column = next(names.index(name) for name in _CONVERSATION_FIELDS if name in names)
    for _one, group in groupby(rows, key=lambda row: row[1][column]):
        turns = [(label, dict(zip(names, row, strict=True))) for label, row in group]
        yield Document(
            messages=tuple(_parse_message(fields, what, repairs) for what, fields in turns)
        )


def has_conversation_id(names: list[str]) -> bool:
    """Tell whether a table of turns says which conversation each belongs to."""
    return any(name in names for name in _CONVERSATION_FIELDS)
