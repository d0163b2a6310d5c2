"""The records in a file of JSON, CSV or Parquet, each a document."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import open_regular, parse_json
from minillm_repl.training.documents import Document, Repairs
from minillm_repl.training.records import JSON_FIELDS, parse_message, parse_record, record_kind

MAX_RECORD = 64 << 20  # characters of one record
_PARQUET_ROWS = 256  # rows that are in memory at once
# A quote alone begins a string whose end is not read yet.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},"]', re.DOTALL)
# The columns that can name the conversation of a turn, in the order in which they are looked for.
CONVERSATION_FIELDS = ("conversation", "conversation_id", "dialogue_id", "chat_id", "id", "대화")


# -- JSON


def json_kind(head: str) -> str:
    """Return `lines` for JSON of which the first line is whole, and no array; else `array`."""
    first = head.lstrip().partition("\n")[0]
    # One line may be an array of all records; then it is read as an array.
    if first.startswith("["):
        return "array"
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "array" if first.rstrip() in "{" or not first.endswith("}") else "lines"
    return "lines"


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


# -- tables


def table_delimiter(first_lines: Mapping[str, list[str]], name: str) -> str:
    """Return the delimiter of a table, chosen by what its first line is with each of some.

    Raises UserError if the columns have no clear meaning with any.
    """
    for delimiter, columns in first_lines.items():
        kind = record_kind(columns)
        # Turns without a column for their conversation would all be one conversation.
        if kind and (kind != "turn" or _has_conversation_id(columns)):
            return delimiter
    most: list[str] = max(first_lines.values(), key=len)
    raise UserError(
        _(
            "{name} is a table with the columns {columns:.100}. Its first line must name "
            "`text`, or `prompt` and `completion`, or `messages`. documents=whole trains "
            "on it as plain text",
            name=name,
            columns=safe_line(", ".join(most)),
        )
    )


def _column_names(row: list[str]) -> list[str]:
    return [name.strip().casefold() for name in row]


def table_rows(
    chunks: Iterator[str], name: str, repairs: Repairs, delimiter: str
) -> Iterator[Document]:
    """Yield a document for each row of a table whose first line names its columns.

    Raises UserError naming the line.
    """
    csv.field_size_limit(MAX_RECORD)  # Python's own limit is 128 KiB, less than a long text
    reader = csv.reader(iter_lines(chunks, name), delimiter=delimiter, strict=True)
    rows = _checked_rows(reader, name)
    names = _column_names(next(rows)[1])
    if record_kind(names) == "turn":
        yield from _table_conversations(rows, names, repairs)
        return
    for label, row in rows:
        fields: dict[str, Any] = dict(zip(names, row, strict=True))
        for column in JSON_FIELDS:
            if fields.get(column, "").lstrip().startswith("["):
                fields[column] = parse_json(fields[column], label)
        yield parse_record(fields, label, repairs)


def parquet_rows(file: Path, repairs: Repairs) -> Iterator[Document]:
    """Yield a document for each row of a Parquet file. Raises UserError naming the row."""
    name = safe_line(str(file))
    try:
        parquet = import_module("pyarrow.parquet")
        arrow_error = import_module("pyarrow").ArrowException
    except ImportError:
        raise UserError(
            _(
                "{name} is a Parquet file: `pip install pyarrow` lets the program read it",
                name=name,
            )
        ) from None
    try:
        with open_regular(file) as opened:
            table = parquet.ParquetFile(opened)
            names = _column_names(table.schema_arrow.names)
            rows = (
                (_("row {number:,} of {file}", number=number, file=name), row)
                for number, row in enumerate(_parquet_values(table), 1)
            )
            if record_kind(names) == "turn" and _has_conversation_id(names):
                lists = ((label, list(row.values())) for label, row in rows)
                yield from _table_conversations(lists, names, repairs)
                return
            for label, row in rows:
                # A column that other records lack is null here.
                fields = {field: value for field, value in row.items() if value is not None}
                yield parse_record(fields, label, repairs)
    except (arrow_error, OSError) as error:
        raise UserError(
            _(
                "{name} is damaged: {error:.200}",
                name=name,
                error=safe_line(str(error)),
            )
        ) from None


def _parquet_values(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
        yield from batch.to_pylist()


def _checked_rows(reader: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not empty, each with a label for messages.

    Raises UserError for a row of another number of columns, and for a quote out of place.
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
    """Yield a conversation for successive rows with the same value in its column."""
    # Only rows that follow one another: a table is read as a stream, and is not sorted.
    column = next(names.index(name) for name in CONVERSATION_FIELDS if name in names)
    for _one, group in groupby(rows, key=lambda row: row[1][column]):
        turns = [(label, dict(zip(names, row, strict=True))) for label, row in group]
        yield Document(
            messages=tuple(parse_message(fields, what, repairs) for what, fields in turns)
        )


def _has_conversation_id(names: list[str]) -> bool:
    """Tell whether a table of turns says which conversation each belongs to."""
    return any(name in names for name in CONVERSATION_FIELDS)
