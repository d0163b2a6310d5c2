"""What a file holds, told by what is in it: a text, JSON or a table."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.training.documents import Document, Repairs, text_documents
from minillm_repl.training.records import json_array, json_lines, record_kind
from minillm_repl.training.tables import first_rows, has_conversation_id, table_rows

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md")
OTHER_SUFFIXES = (".json", ".csv", ".tsv", ".tab")
_TABLE_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|", ".tab": "\t,;|"}  # the likeliest first
_HEAD_BYTES = 1 << 16  # bytes at the start of a file that tell its format
_JSON_OBJECT_START = re.compile(r'\s*(?P<array>\[\s*)?\{\s*"[^"\n]*"\s*:')  # no prose begins so
_FORMAT_NAMES = {
    "lines": N_("JSON lines"),
    "array": N_("JSON"),
    "table": N_("a table"),
    "text": N_("text"),
}
_TEXT_ONLY_SPLITS = ("blank-lines", "whole")  # settings that make a text of any file


@dataclass(frozen=True)
class FileFormat:
    """How a file is read: as `text`, JSON `lines`, a JSON `array` (or one value), or a `table`."""

    kind: str = "text"
    delimiter: str = ""
    contradicts_suffix: bool = False  # whether its name says something else

    @property
    def title(self) -> str:
        """What the user is told that the file holds."""
        return _(_FORMAT_NAMES[self.kind])


def detect_format(file: Path, split: str) -> FileFormat:
    """Look at how a file begins.

    Raises UserError for a table whose columns have no clear meaning.
    """
    suffix = file.suffix.lower()
    head = next(read_text_chunks(file, DetectedEncoding(), _HEAD_BYTES), "")
    if suffix in JSON_LINES_SUFFIXES:
        return FileFormat("array" if head.lstrip().startswith("[") else "lines")
    if split in _TEXT_ONLY_SPLITS or not head.strip():
        return FileFormat(
            "text", contradicts_suffix=suffix in OTHER_SUFFIXES and split in _TEXT_ONLY_SPLITS
        )
    if suffix in _TABLE_DELIMITERS:
        return _table_format(head, _TABLE_DELIMITERS[suffix], safe_line(str(file)))
    if _JSON_OBJECT_START.match(head):
        return FileFormat(_json_kind(head), contradicts_suffix=suffix != ".json")
    if suffix != ".json":
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


def read_documents(
    file: Path, file_format: FileFormat, split: str, repairs: Repairs, chunks: Iterator[str]
) -> Iterator[Document]:
    """Yield the documents of a file, whose text comes in pieces. Raises UserError."""
    name = safe_line(str(file))
    match file_format.kind:
        case "lines":
            return json_lines(chunks, name, repairs)
        case "array":
            return json_array(chunks, name, repairs)
        case "table":
            return table_rows(chunks, name, repairs, file_format.delimiter)
    return text_documents(chunks, split, repairs)


def _json_kind(head: str) -> str:
    """Return whether JSON comes in lines: then the first of them is whole, and no array."""
    first = head.lstrip().partition("\n")[0]
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
    rows are those of one.
    """
    for delimiter in "\t,;":
        names, row = [*islice(first_rows(head, delimiter), 2), [], []][:2]
        if len(row) == len(names) > 1 and "" not in names and record_kind(names):
            return FileFormat("table", delimiter, contradicts_suffix=True)
    return FileFormat()
