"""Corpora: files and folders of them, read in a stream as documents."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.training.documents import CHUNK_SIZE, Document, Repairs, with_file_name
from minillm_repl.training.file_format import (
    JSON_LINES_SUFFIXES,
    OTHER_SUFFIXES,
    TEXT_SUFFIXES,
    FileFormat,
    detect_format,
    read_documents,
)

_MAX_FILES = 100_000
_N_CODE_POINTS = 0x110000  # the number of code points in Unicode
_MIN_SEPARATED_DOCUMENTS = (
    10  # documents: so few gaps of several lines are an accident, and separate nothing
)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What there is to learn from; it stays on disk, and is read from there as often as needed."""

    name: str  # as the user gave it
    files: tuple[tuple[Path, FileFormat], ...]
    split: str
    # of a file: of its text with newlines as line ends and no byte order mark, as UTF-8
    sha256: str
    count: int  # of documents
    is_conversational: bool
    # (0x110000,), how often each code point occurs
    character_counts: NDArray[np.int64] = field(repr=False)
    notes: tuple[str, ...] = ()  # what was found and mended, a line each

    def documents(self) -> Iterator[Document]:
        """Yield all documents, from the first."""
        for file, shape in self.files:
            yield from read_documents(
                file,
                shape,
                self.split,
                Repairs(),
                read_text_chunks(file, DetectedEncoding(), CHUNK_SIZE),
            )

    @property
    def format_key(self) -> str:
        """How it is read, as far as its name and its digest do not say."""
        return " ".join(f"{shape.kind}{shape.delimiter}" for _file, shape in self.files[:1])


def open_corpus(
    path: Path, split: str = "auto", interrupted: Callable[[], bool] = lambda: False
) -> Corpus:
    """Look through a corpus once: its documents, its characters, its digest.

    `split` says where a text file's documents end: `auto` (at a line `<|endoftext|>`, and at two or
    more blank lines where that is more than an accident), `lines` (each line is a document),
    `blank-lines` (one is enough) or `whole` (nowhere). Each record of JSON or of a table and each
    file of a folder is a document in any case. Raises UserError naming the file, if it cannot be
    read, is not what its ending says, or is empty; or when it is interrupted.
    """
    corpus = _scan_corpus(path, split, interrupted)
    # A few gaps of two blank lines are an accident: read it again with the marks alone.
    if (
        split == "auto"
        and 1 < corpus.count < _MIN_SEPARATED_DOCUMENTS
        and [file for file, _shape in corpus.files] == [path]
    ):
        return _scan_corpus(path, "marks", interrupted)
    return corpus


def _scan_corpus(path: Path, split: str, interrupted: Callable[[], bool]) -> Corpus:
    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path's own raises for a name that is too long
    skipped = list[str]()
    files = (
        tuple(_folder_files(path, split, skipped))
        if is_folder
        else ((path, detect_format(path, split)),)
    )
    repairs, digest = Repairs(), hashlib.sha256()
    character_counts = np.zeros(_N_CODE_POINTS, dtype=np.int64)
    count, has_conversations, has_texts = 0, False, False
    pending_texts, length = list[str](), 0
    for file, shape in files:
        if is_folder:  # the names count too: another order of the files is another corpus
            digest.update(str(file.relative_to(path)).encode("utf-8", "surrogateescape") + b"\0")
        encoding = DetectedEncoding()
        for document in read_documents(
            file,
            shape,
            split,
            repairs,
            _update_digest(read_text_chunks(file, encoding, CHUNK_SIZE), digest),
        ):
            has_conversations |= bool(document.messages)
            has_texts |= bool(document.text)
            count += document.is_complete
            pending_texts += document.texts
            length += sum(map(len, document.texts))
            if length > CHUNK_SIZE:  # counting takes as long for one character as for a million
                character_counts += _character_counts(pending_texts)
                pending_texts, length = [], 0
                if interrupted():
                    raise UserError(_("stopped while reading {path}", path=safe_line(str(path))))
        repairs.record_file(file.name, encoding, counts_newlines=shape.kind == "text")
    character_counts += _character_counts(pending_texts)
    name = safe_line(str(path))
    if has_conversations and has_texts:
        raise UserError(
            _("{name} mixes texts and conversations; split them into two corpora", name=name)
        )
    if not character_counts[33:].any():  # nothing but white space and control characters
        raise UserError(_("{name} is empty: there is nothing to train on", name=name))
    notes = (*skipped, *_format_notes(files, is_folder), *repairs.notes(is_folder))
    return Corpus(
        name=str(path),
        files=files,
        split=split,
        sha256=digest.hexdigest(),
        count=count,
        is_conversational=has_conversations,
        character_counts=character_counts,
        notes=notes,
    )


def _update_digest(chunks: Iterator[str], digest: "hashlib._Hash") -> Iterator[str]:
    for chunk in chunks:
        digest.update(chunk.encode())
        yield chunk


def _format_notes(files: tuple[tuple[Path, FileFormat], ...], is_folder: bool) -> Iterator[str]:
    """Yield what is to be told of files that hold something else than their names say, a line
    for each kind.
    """
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
    """Yield the files of a folder that can be read, and what they hold; tell of those whose
    meaning is not clear.
    """
    for file in _list_files(folder):
        try:
            shape = detect_format(file, split)
            # JSON may be anything, such as settings: read its first record to find out. A table
            # was told by its columns.
            if file.suffix.lower() in OTHER_SUFFIXES and shape.kind != "table":
                next(
                    read_documents(
                        file,
                        shape,
                        split,
                        Repairs(),
                        read_text_chunks(file, DetectedEncoding(), CHUNK_SIZE),
                    ),
                    None,
                )
            yield file, shape
        except UserError as error:
            if file.suffix.lower() not in OTHER_SUFFIXES:
                raise  # A text that cannot be read is an error, and no file to pass over.
            skipped.append(_("not read: {error}", error=error))


def _list_files(folder: Path) -> Iterator[Path]:
    root, endings = folder.resolve(), (*TEXT_SUFFIXES, *JSON_LINES_SUFFIXES, *OTHER_SUFFIXES)
    paths = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in endings
        and not _is_hidden(file.relative_to(folder))
        and file.is_file()
        and file.resolve().is_relative_to(root)  # no link that leads out of the folder
    )
    name = safe_line(str(folder))
    if not paths:
        raise UserError(
            _(
                "no text in {name}: no file name ends in {endings}",
                name=name,
                endings=", ".join(endings),
            )
        )
    if len(paths) > _MAX_FILES:
        raise UserError(
            _(
                "too many files in {name}: {count:,}; the limit is {most:,}",
                count=len(paths),
                name=name,
                most=_MAX_FILES,
            )
        )
    yield from paths


def _is_hidden(file: Path) -> bool:
    """Tell whether a system or an editor has put a file there, or in a folder of theirs: second
    copies, and no text.
    """
    return any(component.startswith(".") or component == "__MACOSX" for component in file.parts)
