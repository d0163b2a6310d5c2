"""Tables become documents: a row is a record, or a turn of a conversation."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any

from minillm_repl.checkpoint.formats.header import parse_json
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training.documents import Document, Repairs
from minillm_repl.training.records import (
    MAX_RECORD,
    iter_lines,
    parse_message,
    parse_record,
    record_kind,
)

# The columns that can name the conversation of a turn, in the order in which they are looked for.
CONVERSATION_FIELDS = ("conversation", "conversation_id", "dialogue_id", "chat_id", "id", "대화")


def first_rows(head: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the first rows of a text, in lower case, as long as it is a table."""
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
    csv.field_size_limit(MAX_RECORD)
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
    column = next(names.index(name) for name in CONVERSATION_FIELDS if name in names)
    for _one, group in groupby(rows, key=lambda row: row[1][column]):
        turns = [(label, dict(zip(names, row, strict=True))) for label, row in group]
        yield Document(
            messages=tuple(parse_message(fields, what, repairs) for what, fields in turns)
        )


def has_conversation_id(names: list[str]) -> bool:
    """Tell whether a table of turns says which conversation each belongs to."""
    return any(name in names for name in CONVERSATION_FIELDS)
