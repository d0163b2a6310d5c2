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
from minillm_repl.storage.encoding import Written, text_pieces
from minillm_repl.training.documents import PIECE, Document, Mended, named
from minillm_repl.training.file_format import JSON_LINES, OTHER, TEXT, Shape, read, shape_of

_MOST_FILES = 100_000
_POINTS = 0x110000  # Unicode has so many code points
_FEW = 10  # documents: so few gaps of several lines are an accident, and separate nothing


@dataclass(frozen=True)
class Corpus:
    """What there is to learn from; it stays on disk, and is read from there as often as needed."""

    name: str  # as the user gave it
    files: tuple[tuple[Path, Shape], ...]
    split: str
    # of a file: of its text with newlines as line ends and no byte order mark, as UTF-8
    sha256: str
    count: int  # of documents
    conversations: bool
    # (0x110000,), how often each code point occurs
    characters: NDArray[np.int64] = field(repr=False)
    notes: tuple[str, ...] = ()  # what was found and mended, a line each

    def documents(self) -> Iterator[Document]:
        """Yield all documents, from the first."""
        for file, shape in self.files:
            yield from read(file, shape, self.split, Mended(), text_pieces(file, Written(), PIECE))

    @property
    def shape(self) -> str:
        """How it is read, as far as its name and its digest do not say."""
        return " ".join(f"{shape.kind}{shape.delimiter}" for _file, shape in self.files[:1])


def open_corpus(
    path: Path, split: str = "auto", interrupted: Callable[[], bool] = lambda: False
) -> Corpus:
    """Look through a corpus once: its documents, its characters, its digest.

    `split` says where a text file's documents end: `auto` (at a line `<|endoftext|>`, and at two or
    more blank lines where that is more than an accident), `blank-lines` (one is enough) or `whole`
    (nowhere). Each record of JSON or of a table and each file of a folder is a document in any
    case. Raises UserError naming the file, if it cannot be read, is not what its ending says, or is
    empty; or when it is interrupted.
    """
    corpus = _look_through(path, split, interrupted)
    if (
        split == "auto"
        and 1 < corpus.count < _FEW
        and [file for file, _shape in corpus.files] == [path]
    ):
        return _look_through(path, "marks", interrupted)
    return corpus


def _look_through(path: Path, split: str, interrupted: Callable[[], bool]) -> Corpus:
    folder = os.path.isdir(path)  # noqa: PTH112 - Path's own raises for a name that is too long
    skipped = list[str]()
    files = tuple(_in_folder(path, split, skipped)) if folder else ((path, shape_of(path, split)),)
    mended, found = Mended(), hashlib.sha256()
    characters = np.zeros(_POINTS, dtype=np.int64)
    count, conversations, texts = 0, False, False
    waiting, length = list[str](), 0
    for file, shape in files:
        if folder:
            found.update(str(file.relative_to(path)).encode("utf-8", "surrogateescape") + b"\0")
        written = Written()
        for document in read(
            file, shape, split, mended, _digested(text_pieces(file, written, PIECE), found)
        ):
            conversations |= bool(document.messages)
            texts |= bool(document.text)
            count += document.ends
            waiting += document.texts
            length += sum(map(len, document.texts))
            if length > PIECE:  # counting takes as long for one character as for a million
                characters += _counts(waiting)
                waiting, length = [], 0
                if interrupted():
                    raise UserError(_("stopped while reading {path}", path=safe_line(str(path))))
        mended.read(file.name, written, lines=shape.kind == "text")
    characters += _counts(waiting)
    name = safe_line(str(path))
    if conversations and texts:
        raise UserError(
            _("{name} holds both texts and conversations; keep them in two corpora", name=name)
        )
    if not characters[33:].any():
        raise UserError(_("{name} is empty: there is nothing to learn from", name=name))
    notes = (*skipped, *_read_as(files, folder), *mended.notes(folder))
    return Corpus(
        str(path), files, split, found.hexdigest(), count, conversations, characters, notes
    )


def _digested(pieces: Iterator[str], digest: "hashlib._Hash") -> Iterator[str]:
    for piece in pieces:
        digest.update(piece.encode())
        yield piece


def _read_as(files: tuple[tuple[Path, Shape], ...], folder: bool) -> Iterator[str]:
    """Yield what is to be told of files that hold something else than their names say, a line
    for each kind.
    """
    told = [(file.name, shape.title) for file, shape in files if shape.told]
    for title in dict.fromkeys(title for _file, title in told):
        names = [file for file, what in told if what == title]
        yield named(_("holds {what}, and is read as that", what=title), names if folder else [])


def _counts(texts: list[str]) -> NDArray[np.int64]:
    """Return how often each code point occurs, (0x110000,)."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    return np.bincount(points, minlength=_POINTS)


def _in_folder(folder: Path, split: str, skipped: list[str]) -> Iterator[tuple[Path, Shape]]:
    """Yield the files of a folder that can be read, and what they hold; tell of those whose
    meaning is not clear.
    """
    for file in _files(folder):
        try:
            shape = shape_of(file, split)
            # a table was told by its columns
            if file.suffix.lower() in OTHER and shape.kind != "table":
                next(read(file, shape, split, Mended(), text_pieces(file, Written(), PIECE)), None)
            yield file, shape
        except UserError as error:
            if file.suffix.lower() not in OTHER:
                raise
            skipped.append(_("not read: {error}", error=error))


def _files(folder: Path) -> Iterator[Path]:
    inside, endings = folder.resolve(), (*TEXT, *JSON_LINES, *OTHER)
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in endings
        and not _beside(file.relative_to(folder))
        and file.is_file()
        and file.resolve().is_relative_to(inside)
    )
    name = safe_line(str(folder))
    if not found:
        raise UserError(
            _(
                "there is no text in {name}: no file that ends in {endings}",
                name=name,
                endings=", ".join(endings),
            )
        )
    if len(found) > _MOST_FILES:
        raise UserError(
            _(
                "there are {count:,} files in {name}; at most {most:,} can be read",
                count=len(found),
                name=name,
                most=_MOST_FILES,
            )
        )
    yield from found


def _beside(file: Path) -> bool:
    """Tell whether a system or an editor has put a file there, or in a folder of theirs: second
    copies, and no text.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)
