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
from minillm_repl.training.documents import Document, Mended, composed

_LONGEST = 64 << 20  # characters of one record
# a quote alone begins a string that is not whole yet
_PART = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},"]', re.DOTALL)
_TEXT = ("text", "document", "sentence", "본문", "텍스트", "문장")
_ASKED = ("prompt", "question", "instruction", "user", "q", "질문")
_ANSWERED = ("completion", "answer", "response", "output", "assistant", "a", "답변", "대답")
_TALK = ("conversation", "conversation_id", "dialogue_id", "chat_id", "id", "대화")


def meaning(names: list[str]) -> str:
    """Return what a record with fields of these names is: `messages`, `text`, `pair`, `turn`;
    empty if unclear.
    """
    known = [name.strip().casefold() for name in names]
    if "messages" in known:
        return "messages"
    if "text" in known:
        return "text"
    if all(sum(name in known for name in side) == 1 for side in (_ASKED, _ANSWERED)):
        return "pair"
    if {"role", "content"} <= set(known):
        return "turn"
    return "text" if sum(name in known for name in _TEXT) == 1 else ""


def record(value: Any, what: str, mended: Mended) -> Document:
    """Return the document that a JSON value is. Raises UserError naming it as `what`."""
    fields = {"text": value} if isinstance(value, str) else value
    if isinstance(fields, dict):
        fields = {name.strip().casefold(): each for name, each in fields.items()}
        found = _DOCUMENTS.get(meaning(list(fields)), _none)(fields, what, mended)
        if found:
            return found
    shown = safe_line(json.dumps(value, ensure_ascii=False))
    raise UserError(
        _(
            '{what} must be a string, or an object with "text" (a string), "messages" (a '
            'list), or "prompt" and'
            ' "completion" (strings), not {shown:.60}',
            what=what,
            shown=shown,
        )
    )


def _none(_fields: dict[str, Any], _what: str, _mended: Mended) -> None:
    """Return no document: the meaning is not clear."""


def _text(fields: dict[str, Any], _what: str, mended: Mended) -> Document | None:
    match _first(fields, _TEXT):
        case str(text):
            return Document(composed(_newlines(text, mended), mended))
    return None


def _messages(fields: dict[str, Any], what: str, mended: Mended) -> Document | None:
    match fields["messages"]:
        case list(messages) if messages:
            return Document(messages=tuple(_message(message, what, mended) for message in messages))
    return None


def _pair(fields: dict[str, Any], what: str, mended: Mended) -> Document | None:
    asked, more, answered = (
        _first(fields, _ASKED),
        fields.get("input") or "",
        _first(fields, _ANSWERED),
    )
    if not all(isinstance(each, str) for each in (asked, more, answered)):
        return None
    said = [("user", f"{asked}\n\n{more}" if more else asked), ("assistant", answered)]
    if fields.get("system"):
        said.insert(0, ("system", fields["system"]))
    return _messages(
        {"messages": [{"role": role, "content": text} for role, text in said]}, what, mended
    )


_DOCUMENTS: dict[str, Callable[[dict[str, Any], str, Mended], Document | None]] = {
    "text": _text,
    "messages": _messages,
    "pair": _pair,
}


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _newlines(text: str, mended: Mended) -> str:
    mended.ends |= "\r" in text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _message(message: Any, what: str, mended: Mended) -> Message:
    match message:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return Message(role, composed(_newlines(content, mended), mended))
    shown = safe_line(json.dumps(message, ensure_ascii=False))
    raise UserError(
        _(
            'a message of {what} must have a "role" (system, user or assistant) and "content" (a'
            " string), not {shown:.60}",
            what=what,
            shown=shown,
        )
    )


# -- JSON


def json_lines(pieces: Iterator[str], name: str, mended: Mended) -> Iterator[Document]:
    """Yield a document for each line of JSON that is not blank.

    Raises UserError naming the line.
    """
    for number, line in enumerate(lines(pieces, name), 1):
        if line.strip():
            what = _("line {number:,} of {file}", number=number, file=name)
            yield record(parse_json(line, what), what, mended)


def lines(pieces: Iterator[str], name: str) -> Iterator[str]:
    """Yield a text line by line, with the newlines. Raises UserError for a line without end."""
    begun, length, number = list[str](), 0, 1
    for piece in pieces:
        for part in io.StringIO(piece):
            begun.append(part)
            length += len(part)
            if length >= _LONGEST:
                what = _("line {number:,} of {file}", number=number, file=name)
                raise UserError(
                    _("{what} is longer than {size} MiB", what=what, size=_LONGEST >> 20)
                )
            if part.endswith("\n"):
                yield "".join(begun)
                begun, length, number = [], 0, number + 1
    if begun:
        yield "".join(begun)


def json_array(pieces: Iterator[str], name: str, mended: Mended) -> Iterator[Document]:
    """Yield a document for each value of an array, or for the one value of a file.

    Raises UserError naming it.
    """
    values = _values(pieces, name)
    if next(values) != "[":
        yield record(parse_json("".join(values), name), name, mended)
        return
    for number, text in enumerate(values, 1):
        what = _("record {number:,} of {file}", number=number, file=name)
        yield record(parse_json(text, what), what, mended)


def _values(pieces: Iterator[str], name: str) -> Iterator[str]:
    """Yield `[`, and then the values of an array as text; or what else the file begins with, and
    then all of it.
    """
    text = next(pieces, "")
    if not text.lstrip().startswith("["):
        yield ""
        length = 0
        for piece in chain((text,), pieces):
            length += len(piece)
            _check_length(length, name)
            yield piece
        return
    yield "["
    text, start, place, depth = text.lstrip()[1:], 0, 0, 0
    more: str | None = ""
    while more is not None:
        text, start, place = text[start:] + more, 0, place - start
        for found in _PART.finditer(text, place):
            part = found.group()
            if part == '"':
                break
            place = found.end()
            if depth == 0 and part in ",]":
                value = text[start : found.start()].strip()
                start = place
                if value or part == ",":
                    yield value
                if part == "]":
                    _nothing_more(text[place:], pieces, name)
                    return
            depth += (part in "[{") - (part in "]}")
        _check_length(len(text) - start, name)
        more = next(pieces, None)
    raise UserError(_("{file} is not whole: its JSON array does not end", file=name))


def _check_length(length: int, name: str) -> None:
    if length > _LONGEST:
        raise UserError(
            _("a record of {file} is longer than {size} MiB", file=name, size=_LONGEST >> 20)
        )


def _nothing_more(rest: str, pieces: Iterator[str], name: str) -> None:
    if rest.strip() or any(piece.strip() for piece in pieces):
        raise UserError(
            _("{file} goes on after its JSON array: is it two files in one?", file=name)
        )


# -- tables


def first_rows(head: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows that a text begins with, as the names of columns are compared, for as long
    as it is a table.
    """
    with suppress(csv.Error):
        for row in csv.reader(io.StringIO(head), delimiter=delimiter, strict=True):
            if row:
                yield _names(row)


def _names(row: list[str]) -> list[str]:
    return [name.strip().casefold() for name in row]


def table(pieces: Iterator[str], name: str, mended: Mended, delimiter: str) -> Iterator[Document]:
    """Yield a document for each row of a table whose first line names its columns.

    Raises UserError naming the line.
    """
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(lines(pieces, name), delimiter=delimiter, strict=True)
    rows = _rows(reader, name)
    names = _names(next(rows)[1])
    if meaning(names) == "turn":
        yield from _talks(rows, names, mended)
        return
    for what, row in rows:
        fields: dict[str, Any] = dict(zip(names, row, strict=True))
        if meaning(names) == "messages":
            fields["messages"] = parse_json(fields["messages"], what)
        yield record(fields, what, mended)


def _rows(reader: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not empty, each with what to call it.

    Raises UserError for one that does not fit.
    """
    width = 0
    try:
        for row in reader:
            what = _("line {number:,} of {file}", number=reader.line_num, file=name)
            width = width or len(row)
            if row and len(row) != width:
                raise UserError(
                    _(
                        "{what} has {found} columns, and the first line {names}",
                        what=what,
                        found=len(row),
                        names=width,
                    )
                )
            if any(row):
                yield what, row
    except csv.Error as error:
        what = _("line {number:,} of {file}", number=reader.line_num, file=name)
        raise UserError(
            _(
                "{what} has a quote that does not end, or stands alone ({error:.80})",
                what=what,
                error=safe_line(str(error)),
            )
        ) from None


def _talks(
    rows: Iterator[tuple[str, list[str]]], names: list[str], mended: Mended
) -> Iterator[Document]:
    """Yield a conversation for the rows, one after the other, that have the same name or number
    of one.
    """
    number = next(names.index(name) for name in _TALK if name in names)
    for _one, talk in groupby(rows, key=lambda row: row[1][number]):
        said = [(what, dict(zip(names, row, strict=True))) for what, row in talk]
        yield Document(messages=tuple(_message(fields, what, mended) for what, fields in said))


def groups_turns(names: list[str]) -> bool:
    """Tell whether a table of turns says which conversation each belongs to."""
    return any(name in names for name in _TALK)
