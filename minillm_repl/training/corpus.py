"""Corpora: files and folders of them, read in a stream as documents."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.files import open_regular
from minillm_repl.training.documents import CHUNK_SIZE, Document, Repairs, with_file_name
from minillm_repl.training.file_format import (
    JSON_LINES_SUFFIXES,
    OTHER_SUFFIXES,
    TEXT_SUFFIXES,
    FileFormat,
    detect_format,
    inner_suffix,
    read_documents,
)

_MAX_FILES = 100_000
_MAX_TOLD = 5  # files that are named with what is not clear about them
_N_CODE_POINTS = 0x110000  # the number of code points in Unicode
# documents: so few gaps of several lines are an accident, and separate nothing
_MIN_SEPARATED_DOCUMENTS = 10
_LONG_DOCUMENT, _MAX_LONG_SHARE = 500, 0.02  # characters; more such lines are no list


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What there is to learn from; it stays on disk, and is read from there as often as needed."""

    name: str  # as the user gave it
    files: tuple[tuple[Path, FileFormat], ...]
    split: str  # as asked for; the format of each file says how it is split
    # of a file: of its text with newlines as line ends and no byte order mark, as UTF-8
    sha256: str
    count: int  # of documents
    is_conversational: bool  # whether there are conversations,
    has_texts: bool  # and whether there are texts
    has_tools: bool  # whether a message is what a tool said
    # (0x110000,), how often each code point occurs
    character_counts: NDArray[np.int64] = field(repr=False)
    notes: tuple[str, ...] = ()  # what was found and mended, a line each
    mixture: tuple[tuple["Corpus", float], ...] = ()  # several corpora, each with its weight

    @property
    def parts(self) -> tuple[tuple["Corpus", float], ...]:
        """The corpora of a mixture with their weights, or this one alone."""
        return self.mixture or ((self, 1.0),)

    def documents(self) -> Iterator[Document]:
        """Yield all documents, from the first."""
        for part, _weight in self.parts:
            yield from _read_files(part.files, part.split, Repairs())

    @property
    def format_key(self) -> str:
        """How it is read, as far as its name and its digest do not say."""
        kinds = [f"{shape.kind}{shape.delimiter}{shape.split}" for _file, shape in self.files]
        return hashlib.sha256("\0".join([self.split, *kinds]).encode()).hexdigest()


def open_corpus(
    path: Path, split: str = "auto", interrupted: Callable[[], bool] = lambda: False
) -> Corpus:
    """Look through a corpus once: its documents, its characters, its digest.

    `split` says where a text file's documents end: `auto` (after each line, where these are many
    and short; else at a line `<|endoftext|>`, and at two or more blank lines where that is more
    than an accident), `lines`, `blank-lines` (one is enough), `files` (each file is one document)
    or `whole` (nowhere: the whole corpus is one). Each record of JSON or of a table is a document,
    but for these four, which make a text of any file. Raises UserError naming the file, if it
    cannot be read, is not what its ending says, or is empty; or when it is interrupted.
    """
    skipped = list[str]()
    # Path's own raises for a name that is too long.
    is_folder = os.path.isdir(path)  # noqa: PTH112
    files = (
        tuple(_folder_files(path, split, skipped))
        if is_folder
        else ((path, detect_format(path, split)),)
    )
    scan = _scan(path, files, split, interrupted)
    if split == "auto" and not is_folder:
        # What the start of a file says is held against the whole: paragraphs after a list of
        # contents, or a few gaps of two blank lines, which are an accident.
        kind = files[0][1].split
        if kind == "lines" and scan.long_documents > _MAX_LONG_SHARE * scan.count:
            kind = "gaps"
            scan = _scan(path, _with_split(files, kind), split, interrupted)
        if kind == "gaps" and 1 < scan.count < _MIN_SEPARATED_DOCUMENTS:
            scan = _scan(path, _with_split(files, "marks"), split, interrupted)
    name = safe_line(str(path))
    if not scan.character_counts[33:].any():  # nothing but white space and control characters
        raise UserError(_("{name} is empty: there is nothing to train on", name=name))
    format_notes = _format_notes(scan.files, is_folder, split)
    return Corpus(
        name=str(path),
        files=scan.files,
        split=split,
        sha256=scan.digest.hexdigest(),
        count=scan.count,
        is_conversational=scan.has_conversations,
        has_texts=scan.has_texts,
        has_tools=scan.has_tools,
        character_counts=scan.character_counts,
        notes=(*skipped, *format_notes, *scan.repairs.notes(is_folder)),
    )


def mix(name: str, parts: Sequence[tuple[Corpus, float]]) -> Corpus:
    """Return several corpora as one; the documents of each come as often as its weight says."""
    corpora = [part for part, _weight in parts]
    digests = "\n".join(f"{part.sha256} {weight:g}" for part, weight in parts)
    notes = [f"{safe_line(part.name)}: {note}" for part in corpora for note in part.notes]
    return Corpus(
        name=name,
        files=tuple(file for part in corpora for file in part.files),
        split=corpora[0].split,
        sha256=hashlib.sha256(digests.encode()).hexdigest(),
        count=sum(part.count for part in corpora),
        is_conversational=any(part.is_conversational for part in corpora),
        has_texts=any(part.has_texts for part in corpora),
        has_tools=any(part.has_tools for part in corpora),
        character_counts=sum(
            (part.character_counts for part in corpora), np.zeros(_N_CODE_POINTS, np.int64)
        ),
        notes=tuple(notes),
        mixture=tuple(parts),
    )


Files = tuple[tuple[Path, FileFormat], ...]


def _with_split(files: Files, split: str) -> Files:
    return tuple((file, replace(shape, split=split)) for file, shape in files)


@dataclass(kw_only=True)
class _Scan:
    """What one pass over the files of a corpus has found."""

    files: Files
    count: int = 0
    long_documents: int = 0
    has_conversations: bool = False
    has_texts: bool = False
    has_tools: bool = False
    repairs: Repairs = field(default_factory=Repairs)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    character_counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(_N_CODE_POINTS, dtype=np.int64)
    )


def _scan(path: Path, files: Files, split: str, interrupted: Callable[[], bool]) -> _Scan:
    """Read all files once. Raises UserError."""
    scan = _Scan(files=files)
    root = path if files[0][0] != path else None
    pending_texts, length = list[str](), 0
    for document in _read_files(files, split, scan.repairs, scan.digest, root):
        scan.has_conversations |= bool(document.messages)
        scan.has_texts |= bool(document.text)
        scan.has_tools |= any(message.role == "tool" for message in document.messages)
        scan.count += document.is_complete
        scan.long_documents += len(document.text) > _LONG_DOCUMENT
        pending_texts += document.texts
        length += sum(map(len, document.texts))
        if length > CHUNK_SIZE:  # counting takes as long for one character as for a million
            scan.character_counts += _character_counts(pending_texts)
            pending_texts, length = [], 0
            if interrupted():
                raise UserError(_("stopped while reading {path}", path=safe_line(str(path))))
    scan.character_counts += _character_counts(pending_texts)
    return scan


def _read_files(
    files: Files,
    split: str,
    repairs: Repairs,
    digest: "hashlib._Hash | None" = None,
    root: Path | None = None,
) -> Iterator[Document]:
    """Yield the documents of files; the digest gets their text, and their names within `root`."""
    documents = _read_each(files, repairs, digest, root)
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
    files: Files, repairs: Repairs, digest: "hashlib._Hash | None", root: Path | None
) -> Iterator[Document]:
    for file, shape in files:
        if digest is not None and root is not None:
            # The names count too: another order of the files is another corpus.
            digest.update(str(file.relative_to(root)).encode("utf-8", "surrogateescape") + b"\0")
        encoding = DetectedEncoding()
        chunks = read_text_chunks(file, encoding, CHUNK_SIZE)
        if shape.kind == "parquet":
            chunks = iter(())
            if digest is not None:
                with open_regular(file) as opened:
                    while data := opened.read(CHUNK_SIZE):
                        digest.update(data)
        if digest is not None:
            chunks = _update_digest(chunks, digest)
        yield from read_documents(file, shape, repairs, chunks)
        repairs.record_file(file.name, encoding, counts_newlines=shape.kind == "text")


def _update_digest(chunks: Iterator[str], digest: "hashlib._Hash") -> Iterator[str]:
    for chunk in chunks:
        digest.update(chunk.encode())
        yield chunk


def _format_notes(files: Files, is_folder: bool, split: str) -> Iterator[str]:
    """Yield what is to be told of files that are lists, or hold something else than their names
    say, a line for each kind.
    """
    lists = [file.name for file, shape in files if shape.split == "lines"]
    if lists and split == "auto":
        note = _("each line is a document; documents=whole learns it as one text")
        yield with_file_name(note, lists if is_folder else [])
    mismatched = [(file.name, shape.title) for file, shape in files if shape.contradicts_suffix]
    for title in dict.fromkeys(title for _file, title in mismatched):
        names = [file for file, what in mismatched if what == title]
        yield with_file_name(
            _("holds {what} and is read as such", what=title), names if is_folder else []
        )


def _character_counts(texts: list[str]) -> NDArray[np.int64]:
    """Return how often each code point occurs, (0x110000,)."""
    # UTF-32 has four bytes for each code point: numpy reads them as numbers.
    code_points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    return np.bincount(code_points, minlength=_N_CODE_POINTS)


def _folder_files(
    folder: Path, split: str, skipped: list[str]
) -> Iterator[tuple[Path, FileFormat]]:
    """Yield the files of a folder that are texts; tell of those that are none, or not clear."""
    unclear, no_texts, found = list[str](), list[str](), False
    for file in _list_files(folder):
        suffix = inner_suffix(file)
        try:
            shape = detect_format(file, split)
            # JSON may be anything, such as settings: read its first record to find out. A table
            # was told by its columns.
            if suffix in OTHER_SUFFIXES and shape.kind != "table":
                next(_read_each(((file, shape),), Repairs(), None, None), None)
            # Source code has blank lines within what belongs together.
            if shape.split in ("gaps", "lines") and suffix not in TEXT_SUFFIXES and split == "auto":
                shape = replace(shape, split="marks")
            found = True
            yield file, shape
        except UserError as error:
            if suffix in TEXT_SUFFIXES:
                raise  # A text that cannot be read is an error, and no file to pass over.
            if suffix in (*OTHER_SUFFIXES, *JSON_LINES_SUFFIXES, ".parquet"):
                unclear.append(_("not read: {error}", error=error))
            else:
                no_texts.append(file.name)
    skipped += unclear[:_MAX_TOLD]
    if unclear[_MAX_TOLD:]:
        more = len(unclear) - _MAX_TOLD
        skipped.append(_n("{n:,} more file not read", "{n:,} more files not read", more))
    if no_texts:
        skipped.append(with_file_name(_("no text, left out"), no_texts))
    if not found:
        count = len(unclear) + len(no_texts)
        name = safe_line(str(folder))
        raise UserError(
            _n(
                "no text in {name}: its {n:,} file is none",
                "no text in {name}: none of its {n:,} files is one",
                count,
                name=name,
            )
            + "".join(f"; {note}" for note in unclear[:1])
        )


def _list_files(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their names. Raises UserError for too many."""
    root = folder.resolve()
    paths = sorted(
        file
        for file in folder.rglob("*")
        if not _is_hidden(file.relative_to(folder))
        and file.is_file()
        and file.resolve().is_relative_to(root)  # no link that leads out of the folder
    )
    if len(paths) > _MAX_FILES:
        raise UserError(
            _(
                "too many files in {name}: {count:,}; the limit is {most:,}",
                count=len(paths),
                name=safe_line(str(folder)),
                most=_MAX_FILES,
            )
        )
    return paths


def _is_hidden(file: Path) -> bool:
    """Tell whether a system or an editor has put a file there, or in a folder of theirs: second
    copies, and no text.
    """
    return any(component.startswith(".") or component == "__MACOSX" for component in file.parts)
