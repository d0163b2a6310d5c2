"""The files of a corpus: what each holds, told by what is in it, and the documents in them."""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.files import open_regular
from minillm_repl.training import record_files
from minillm_repl.training.documents import (
    CHUNK_SIZE,
    END_MARK,
    Document,
    Repairs,
    text_documents,
)
from minillm_repl.training.records import record_kind

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md")
OTHER_SUFFIXES = (".json", ".csv", ".tsv", ".tab")
_TABLE_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|", ".tab": "\t,;|"}  # the likeliest first
_COMPRESSIONS = (".gz", ".zst")
_PARQUET_START = b"PAR1"
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
# What a list of short documents looks like, one a line: names, words, sentences, messages.
_MIN_LINES = 200  # lines; a shorter text may be a poem
_MAX_LINE = 140  # characters of 19 of 20 lines, where paragraphs are longer
# Median length ÷ that of the 95th percentile; wrapped lines, of at least this, are about as long.
_MAX_EVEN, _MIN_WRAPPED = 0.8, 40
_MAX_ODD = 0.02  # share of lines that are blank, indented, or end in the middle of a sentence
_ODD_LINE = re.compile(r"^(?:\s.*|.*[,;:(\-–—]\s*|)$", re.MULTILINE)
_LONG_DOCUMENT = 500  # characters
N_CODE_POINTS = 0x110000  # of Unicode


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


Files = tuple[tuple[Path, FileFormat], ...]


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
        delimiters = _TABLE_DELIMITERS[suffix]
        columns = {delimiter: next(_first_rows(head, delimiter), []) for delimiter in delimiters}
        return FileFormat("table", record_files.table_delimiter(columns, safe_line(str(file))))
    return _detect_by_content(file, suffix, head)


def _detect_by_content(file: Path, suffix: str, head: str) -> FileFormat:
    """Return the format of a file that is no table by its name. Raises UserError."""
    if _JSON_OBJECT_START.match(head):
        return FileFormat(record_files.json_kind(head), contradicts_suffix=suffix != ".json")
    if suffix != ".json" or not head.strip():
        return _detect_table(head)
    if head.lstrip()[0] in '[{"':
        return FileFormat(record_files.json_kind(head))
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


def _detect_table(head: str) -> FileFormat:
    """Return the shape of a file whose name says that it is a text: a table if its first two
    rows are those of one, else a list of short documents or a text.
    """
    for delimiter in "\t,;":
        names, row = [*islice(_first_rows(head, delimiter), 2), [], []][:2]
        if len(row) == len(names) > 1 and "" not in names and record_kind(names):
            return FileFormat("table", delimiter, contradicts_suffix=True)
    return FileFormat(split="lines" if _is_list(head) else "gaps")


def _first_rows(head: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the first rows of a text, in lower case, as long as it is a table."""
    with suppress(csv.Error):
        for row in csv.reader(io.StringIO(head), delimiter=delimiter, strict=True):
            if row:
                yield [name.strip().casefold() for name in row]


def _is_list(head: str) -> bool:
    """Tell whether each line of a text is a document, by how the text begins."""
    lines = head.split("\n")[:-1]  # The last one may be cut off.
    lengths = sorted(map(len, lines))
    if len(lines) < _MIN_LINES or END_MARK in head:
        return False
    median, long = lengths[len(lengths) // 2], lengths[len(lengths) * 19 // 20]
    odd = len(_ODD_LINE.findall(head))
    is_wrapped = long >= _MIN_WRAPPED and median > _MAX_EVEN * long
    return long <= _MAX_LINE and not is_wrapped and odd <= _MAX_ODD * len(lines)


# -- reading


Piece = tuple[Document, bool]  # a document or a piece of one, and whether it is the first


@dataclass(kw_only=True)
class Scan:
    """What one pass over the files of a corpus has found."""

    files: Files
    count: int = 0  # of documents
    long_documents: int = 0  # of more than 500 characters
    has_conversations: bool = False
    has_texts: bool = False
    has_tools: bool = False  # whether a message is what a tool said
    repairs: Repairs = field(default_factory=Repairs)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    # (0x110000,), how often each code point occurs
    character_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(N_CODE_POINTS, dtype=np.int64)
    )


def scan(path: Path, files: Files, split: str, interrupted: Callable[[], bool]) -> Scan:
    """Read all files of the corpus at `path` once. Raises UserError, also when interrupted."""
    found = Scan(files=files)
    root = path if files[0][0] != path else None  # A file alone may have any name.
    documents = read_files(files, split, found.repairs, found.digest, root)
    # Counting takes as long for one character as for a million.
    for group in groups(documents, CHUNK_SIZE):
        for document, _is_first in group:
            found.has_conversations |= bool(document.messages)
            found.has_texts |= bool(document.text)
            found.has_tools |= any(message.role == "tool" for message in document.messages)
            found.count += document.is_complete
            found.long_documents += len(document.text) > _LONG_DOCUMENT
        text = "".join(text for document, _is_first in group for text in document.texts)
        # UTF-32 has four bytes for each code point: numpy reads them as numbers.
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        found.character_counts += np.bincount(code_points, minlength=N_CODE_POINTS)
        if interrupted():
            raise UserError(_("stopped while reading {path}", path=safe_line(str(path))))
    return found


def groups(documents: Iterator[Document], size: int) -> Iterator[list[Piece]]:
    """Yield documents in groups of at most `size`, or of about a million characters."""
    group: list[Piece] = []
    length, is_first = 0, True
    for document in documents:
        group.append((document, is_first))
        is_first = document.is_complete
        length += sum(map(len, document.texts))
        if len(group) >= size or length > CHUNK_SIZE:
            yield group
            group, length = [], 0
    if group:
        yield group


def read_files(
    files: Files,
    split: str,
    repairs: Repairs | None = None,
    digest: "hashlib._Hash | None" = None,
    root: Path | None = None,
) -> Iterator[Document]:
    """Yield the documents of files; the digest gets their text, and their names within `root`.

    Raises UserError.
    """
    documents = _read_each(files, split, repairs or Repairs(), digest, root)
    if split != "whole":
        yield from documents
        return
    # All files are one document: each ends it only if no other follows.
    last: Document | None = None
    for document in documents:
        if last is not None:
            yield replace(last, is_complete=False)
        last = document
    if last is not None:
        yield last


def _read_each(
    files: Files,
    split: str,
    repairs: Repairs,
    digest: "hashlib._Hash | None",
    root: Path | None,
) -> Iterator[Document]:
    for file, shape in files:
        if digest is not None and root is not None:
            # The names count too: another order of the files is another corpus.
            digest.update(str(file.relative_to(root)).encode("utf-8", "surrogateescape") + b"\0")
        encoding = DetectedEncoding()  # known once the chunks are read
        if shape.kind == "parquet":
            _hash_bytes(file, digest)
        chunks = read_text_chunks(file, encoding, CHUNK_SIZE, digest)
        yield from _documents(file, shape, repairs, chunks)
        repairs.record_file(
            file.name,
            encoding,
            is_text=shape.kind == "text",
            is_list=shape.split == "lines" and split == "auto",
            holds=shape.title if shape.contradicts_suffix else "",
        )


def _hash_bytes(file: Path, digest: "hashlib._Hash | None") -> None:
    with open_regular(file) as opened:
        while digest is not None and (data := opened.read(CHUNK_SIZE)):
            digest.update(data)


def _documents(
    file: Path, shape: FileFormat, repairs: Repairs, chunks: Iterator[str]
) -> Iterator[Document]:
    """Yield the documents of a file, whose text comes in pieces. Raises UserError."""
    name = safe_line(str(file))
    match shape.kind:
        case "parquet":
            return record_files.parquet_rows(file, repairs)
        case "lines":
            return record_files.json_lines(chunks, name, repairs)
        case "array":
            return record_files.json_array(chunks, name, repairs)
        case "table":
            return record_files.table_rows(chunks, name, repairs, shape.delimiter)
    return text_documents(chunks, shape.split, repairs)
