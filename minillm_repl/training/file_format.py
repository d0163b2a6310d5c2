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
from minillm_repl.storage.encoding import Written, text_pieces
from minillm_repl.training.documents import Document, Mended, text_documents
from minillm_repl.training.records import (
    first_rows,
    groups_turns,
    json_array,
    json_lines,
    meaning,
    table,
)

JSON_LINES, TEXT, OTHER = (".jsonl", ".ndjson"), (".txt", ".md"), (".json", ".csv", ".tsv", ".tab")
_TABLES = {".csv": ",;\t|", ".tsv": "\t,;|", ".tab": "\t,;|"}  # the likeliest delimiter first
_HEAD = 1 << 16  # bytes by which it is told
_OBJECT = re.compile(r'\s*(?P<array>\[\s*)?\{\s*"[^"\n]*"\s*:')  # no prose begins so
_WHAT = {"lines": N_("JSON lines"), "array": N_("JSON"), "table": N_("a table"), "text": N_("text")}
_AS_TEXT = ("blank-lines", "whole")  # ways of splitting that are asked for: they are for texts


@dataclass(frozen=True)
class Shape:
    """How a file is read: as `text`, as JSON `lines`, as a JSON `array` (or one value), or as a
    `table`.
    """

    kind: str = "text"
    delimiter: str = ""
    told: bool = False  # whether its name says something else

    @property
    def title(self) -> str:
        """What the user is told that the file holds."""
        return _(_WHAT[self.kind])


def shape_of(file: Path, split: str) -> Shape:
    """Look at how a file begins.

    Raises UserError for a table whose columns have no clear meaning.
    """
    suffix = file.suffix.lower()
    head = next(text_pieces(file, Written(), _HEAD), "")
    if suffix in JSON_LINES:
        return Shape("array" if head.lstrip().startswith("[") else "lines")
    if split in _AS_TEXT or not head.strip():
        return Shape("text", told=suffix in OTHER and split in _AS_TEXT)
    if suffix in _TABLES:
        return _table(head, _TABLES[suffix], safe_line(str(file)))
    if _OBJECT.match(head):
        return Shape(_json(head), told=suffix != ".json")
    if suffix != ".json":
        return _table_by_chance(head)
    if head.lstrip()[0] in '[{"':
        return Shape(_json(head))
    raise UserError(
        _(
            "{name} is no JSON: it begins with {head:.40}; documents=whole learns it as the "
            "text that it is",
            name=safe_line(str(file)),
            head=safe_line(head.strip()),
        )
    )


def read(
    file: Path, shape: Shape, split: str, mended: Mended, pieces: Iterator[str]
) -> Iterator[Document]:
    """Yield the documents of a file, whose text comes in pieces. Raises UserError."""
    name = safe_line(str(file))
    match shape.kind:
        case "lines":
            return json_lines(pieces, name, mended)
        case "array":
            return json_array(pieces, name, mended)
        case "table":
            return table(pieces, name, mended, shape.delimiter)
    return text_documents(pieces, split, mended)


def _json(head: str) -> str:
    """Return whether JSON comes in lines: then the first of them is whole, and no array."""
    first = head.lstrip().partition("\n")[0]
    if first.startswith("["):
        return "array"
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "array" if first.rstrip() in "{" or not first.endswith("}") else "lines"
    return "lines"


def _table(head: str, delimiters: str, name: str) -> Shape:
    names = list[str]()
    for delimiter in delimiters:
        found = next(first_rows(head, delimiter), [])
        kind = meaning(found)
        if kind and (kind != "turn" or groups_turns(found)):
            return Shape("table", delimiter)
        names = max(names, found, key=len)
    raise UserError(
        _(
            "{name} is a table with the columns {columns:.100}: its first line must name "
            "`text`, or `prompt` and"
            " `completion`, or `messages`; documents=whole learns it as the text that it is",
            name=name,
            columns=safe_line(", ".join(names)),
        )
    )


def _table_by_chance(head: str) -> Shape:
    """Return the shape of a file whose name says that it is a text: a table if its first two
    rows are those of one.
    """
    for delimiter in "\t,;":
        names, row = [*islice(first_rows(head, delimiter), 2), [], []][:2]
        if len(row) == len(names) > 1 and "" not in names and meaning(names):
            return Shape("table", delimiter, told=True)
    return Shape()
