"""What a file holds, told by what is in it: a text, JSON or a table; and how tables are read."""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.files import open_regular, parse_json
from minillm_repl.training.documents import Document, Repairs, is_list, text_documents
from minillm_repl.training.records import (
    JSON_FIELDS,
    MAX_RECORD,
    iter_lines,
    json_array,
    json_lines,
    parse_message,
    parse_record,
    record_kind,
)

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md")
OTHER_SUFFIXES = (".json", ".csv", ".tsv", ".tab")
_TABLE_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|", ".tab": "\t,;|"}  # the likeliest first
_COMPRESSIONS = (".gz", ".zst")
_PARQUET_START, _PARQUET_ROWS = b"PAR1", 256  # rows that are in memory at once
_HEAD_BYTES = 1 << 16  # bytes at the start of a file that tell its format
_JSON_OBJECT_START = re.compile(r'\s*(?P<array>\[\s*)?\{\s*"[^"\n]*"\s*:')  # no prose begins so
_FORMAT_NAMES = {
    "lines": N_("JSON lines"),
    "array": N_("JSON"),
    "table": N_("a table"),
    "parquet": N_("a Parquet table"),
    "text": N_("text"),
}
# Settings that make a text of any file.
_TEXT_ONLY_SPLITS = ("lines", "blank-lines", "whole", "files")

# The columns that can name the conversation of a turn, in the order in which they are looked for.
CONVERSATION_FIELDS = ("conversation", "conversation_id", "dialogue_id", "chat_id", "id", "대화")


@dataclass(frozen=True)
class FileFormat:
    """How a file is read: as `text`, JSON `lines`, a JSON `array` (or one value), a `table`, or
    `parquet`.
    """

    kind: str = "text"
    delimiter: str = ""
    contradicts_suffix: bool = False  # whether its name says something else
    split: str = ""  # of a text: where its documents end, as for `text_documents`

    @property
    def title(self) -> str:
        """What the user is told that the file holds."""
        return _(_FORMAT_NAMES[self.kind])


def detect_format(file: Path, split: str) -> FileFormat:
    """Look at how a file begins.

    Raises UserError for a table whose columns have no clear meaning.
    """
    suffix = inner_suffix(file)
    with open_regular(file) as opened:
        if opened.read(len(_PARQUET_START)) == _PARQUET_START:
            return FileFormat("parquet", contradicts_suffix=suffix != ".parquet")
    chunks = read_text_chunks(file, DetectedEncoding(), _HEAD_BYTES)
    head = next(chunks, "")
    next(chunks, None)  # of a short file, also the end must be text
    if suffix in JSON_LINES_SUFFIXES:
        return FileFormat("array" if head.lstrip().startswith("[") else "lines")
    if split in _TEXT_ONLY_SPLITS:
        return FileFormat(contradicts_suffix=suffix in OTHER_SUFFIXES, split=split)
    if suffix in _TABLE_DELIMITERS and head.strip():
        return _table_format(head, _TABLE_DELIMITERS[suffix], safe_line(str(file)))
    return _detect_by_content(file, suffix, head)


def _detect_by_content(file: Path, suffix: str, head: str) -> FileFormat:
    """Return the format of a file that is no table by its name. Raises UserError."""
    if _JSON_OBJECT_START.match(head):
        return FileFormat(_json_kind(head), contradicts_suffix=suffix != ".json")
    if suffix != ".json" or not head.strip():
        return _detect_table(head)
    if head.lstrip()[0] in '[{"':
        return FileFormat(_json_kind(head))
    raise UserError(
        _(
            "{name} is not JSON: it starts with {head:.40}. documents=whole trains on it "
            "as plain text",
            name=safe_line(str(file)),
            head=safe_line(head.strip()),
        )
    )


def inner_suffix(file: Path) -> str:
    """Return the suffix of a file in lower case, without that of its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    return suffixes[-2] if suffixes[-1] in _COMPRESSIONS and suffixes[1:] else suffixes[-1]


def read_documents(
    file: Path, file_format: FileFormat, repairs: Repairs, chunks: Iterator[str]
) -> Iterator[Document]:
    """Yield the documents of a file, whose text comes in pieces. Raises UserError."""
    name = safe_line(str(file))
    match file_format.kind:
        case "parquet":
            return parquet_rows(file, repairs)
        case "lines":
            return json_lines(chunks, name, repairs)
        case "array":
            return json_array(chunks, name, repairs)
        case "table":
            return table_rows(chunks, name, repairs, file_format.delimiter)
    return text_documents(chunks, file_format.split, repairs)


def _json_kind(head: str) -> str:
    """Return whether JSON comes in lines: then the first of them is whole, and no array."""
    first = head.lstrip().partition("\n")[0]
    # One line may be an array of all records; then it is read as an array.
    if first.startswith("["):
        return "array"
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "array" if first.rstrip() in "{" or not first.endswith("}") else "lines"
    return "lines"


def _table_format(head: str, delimiters: str, name: str) -> FileFormat:
    names = list[str]()
    for delimiter in delimiters:
        columns = next(first_rows(head, delimiter), [])
        kind = record_kind(columns)
        # Turns without a column for their conversation would all be one conversation.
        if kind and (kind != "turn" or has_conversation_id(columns)):
            return FileFormat("table", delimiter)
        names = max(names, columns, key=len)
    raise UserError(
        _(
            "{name} is a table with the columns {columns:.100}. Its first line must name "
            "`text`, or `prompt` and `completion`, or `messages`. documents=whole trains "
            "on it as plain text",
            name=name,
            columns=safe_line(", ".join(names)),
        )
    )


def _detect_table(head: str) -> FileFormat:
    """Return the shape of a file whose name says that it is a text: a table if its first two
    rows are those of one, else a list of short documents or a text.
    """
    for delimiter in "\t,;":
        names, row = [*islice(first_rows(head, delimiter), 2), [], []][:2]
        if len(row) == len(names) > 1 and "" not in names and record_kind(names):
            return FileFormat("table", delimiter, contradicts_suffix=True)
    return FileFormat(split="lines" if is_list(head) else "gaps")


# -- tables


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
            if record_kind(names) == "turn" and has_conversation_id(names):
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


def has_conversation_id(names: list[str]) -> bool:
    """Tell whether a table of turns says which conversation each belongs to."""
    return any(name in names for name in CONVERSATION_FIELDS)
