"""Corpora: text files, folders of them and JSON lines, read in a stream as documents."""

import codecs
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.conversation import Message
from minillm_repl.checkpoint.header import open_regular, parse_json
from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line

_PIECE = 1 << 20  # bytes read at once
_JSON, _TEXT = (".jsonl", ".ndjson"), (".txt", ".md")
_LONGEST_LINE = 64 << 20  # bytes of one line of JSON
_MOST_FILES = 100_000
_POINTS = 0x110000  # Unicode has so many code points
_END = r"(?:(?<=\n)|\A)<\|endoftext\|>(?:\n|\Z)"
_BOUNDARY = {
    "auto": re.compile(rf"\n(?:[ \t]*\n){{2,}}|{_END}"),
    "blank-lines": re.compile(rf"\n(?:[ \t]*\n)+|{_END}"),
    "marks": re.compile(_END),
    "whole": re.compile(r"(?!)"),
}
_FEW = 10  # documents: so few gaps of several lines are an accident, and separate nothing


@dataclass(frozen=True)
class Document:
    """A document, or a piece of a long one: a text, or a conversation."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    ends: bool = True  # False: the next piece belongs to the same document

    @property
    def texts(self) -> tuple[str, ...]:
        """All text in it."""
        return (self.text, *(message.content for message in self.messages))


@dataclass
class _Mended:
    """What had to be mended in reading."""

    ends: bool = False
    mark: bool = False
    composed: bool = False


@dataclass(frozen=True)
class Corpus:
    """What there is to learn from; it stays on disk, and is read from there as often as needed."""

    name: str  # as the user gave it
    files: tuple[Path, ...]
    split: str
    sha256: str  # of a text file: of its text with newlines as line ends and no byte order mark, as UTF-8
    count: int  # of documents
    conversations: bool
    characters: NDArray[np.int64] = field(repr=False)  # (0x110000,), how often each code point occurs
    notes: tuple[str, ...] = ()  # what was mended, a line each

    def documents(self) -> Iterator[Document]:
        """Yield all documents, from the first."""
        for file in self.files:
            yield from _documents(file, self.split, _Mended(), None)


def open_corpus(path: Path, split: str = "auto") -> Corpus:
    """Look through a corpus once: its documents, its characters, its digest.

    `split` says where a text file's documents end: `auto` (at a line `<|endoftext|>`, and at two or more blank lines
    where that is more than an accident), `blank-lines` (one is enough) or `whole` (nowhere). Each line of JSON lines
    and each file of a folder is a document in any case. Raises UserError naming the file, if it cannot be read, is not
    what its ending says, or is empty.
    """
    corpus = _look_through(path, split)
    if split == "auto" and 1 < corpus.count < _FEW and corpus.files == (path,):
        return _look_through(path, "marks")
    return corpus


def _look_through(path: Path, split: str) -> Corpus:
    files = tuple(_files(path)) if path.is_dir() else (path,)
    mended, found = _Mended(), hashlib.sha256()
    characters = np.zeros(_POINTS, dtype=np.int64)
    count, conversations, texts = 0, False, False
    for file in files:
        if len(files) > 1 or file != path:
            found.update(str(file.relative_to(path)).encode("utf-8", "surrogateescape") + b"\0")
        for document in _documents(file, split, mended, found):
            conversations |= bool(document.messages)
            texts |= bool(document.text)
            count += document.ends
            for text in document.texts:
                if text:
                    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
                    characters += np.bincount(points, minlength=_POINTS)
    name = safe_line(str(path))
    if conversations and texts:
        raise UserError(f"{name} holds both texts and conversations; keep them in two corpora")
    if not characters[33:].any():
        raise UserError(f"{name} is empty: there is nothing to learn from")
    notes = {
        "a byte order mark at the start was dropped": mended.mark,
        "line ends of other systems became newlines": mended.ends,
        "letters written in parts (NFD) were put together (NFC)": mended.composed,
    }
    told = tuple(note for note, happened in notes.items() if happened)
    return Corpus(str(path), files, split, found.hexdigest(), count, conversations, characters, told)


def _files(folder: Path) -> Iterator[Path]:
    inside = folder.resolve()
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in (*_TEXT, *_JSON) and file.is_file() and file.resolve().is_relative_to(inside)
    )
    name = safe_line(str(folder))
    if not found:
        raise UserError(f"there is no text in {name}: no file that ends in {', '.join((*_TEXT, *_JSON))}")
    if len(found) > _MOST_FILES:
        raise UserError(f"there are {len(found):,} files in {name}; at most {_MOST_FILES:,} can be read")
    yield from found


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _documents(file: Path, split: str, mended: _Mended, digest: _Digest | None) -> Iterator[Document]:
    if file.suffix.lower() in _JSON:
        return _json_documents(file, mended, digest)
    return _text_documents(_pieces(file, mended, digest), _BOUNDARY[split])


def _pieces(file: Path, mended: _Mended, digest: _Digest | None) -> Iterator[str]:
    """Yield a text file in pieces, as NFC with newlines; the digest is told of the text before it becomes NFC."""
    bytes_decoder = codecs.getincrementaldecoder("utf-8")("strict")
    decoder = io.IncrementalNewlineDecoder(bytes_decoder, translate=True)
    held, place, size = "", 0, file.stat().st_size if file.exists() else 0
    with open_regular(file) as stream:
        while True:
            data = stream.read(_PIECE)
            if place == 0 and data.startswith(codecs.BOM_UTF8):
                data, place = data[3:], 3
                mended.mark = True
            pending = len(bytes_decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = place - pending + error.start
                wrong = f"byte {error.object[error.start]:#04x} at {at:,} of {size:,}"
                raise UserError(f"{safe_line(str(file))} is not UTF-8 text: {wrong}") from None
            place += len(data)
            if digest:
                digest.update(text.encode())
            held += text
            if not data:
                break
            cut = _last_cut(held)
            if cut:
                yield _composed(held[:cut], mended)
                held = held[cut:]
    mended.ends |= decoder.newlines not in (None, "\n")
    if held:
        yield _composed(held, mended)


def _last_cut(text: str) -> int:
    """Return where a text can be cut with nothing composed across: before its last space or newline."""
    cut = max(text.rfind(" "), text.rfind("\n"))
    if cut <= 0 and len(text) > 4 * _PIECE:
        cut = next((place for place in range(len(text) - 1, 0, -1) if text[place] < "\u0300"), len(text))
    return max(cut, 0)


def _composed(text: str, mended: _Mended) -> str:
    if unicodedata.is_normalized("NFC", text):
        return text
    mended.composed = True
    return unicodedata.normalize("NFC", text)


def _text_documents(pieces: Iterator[str], boundary: re.Pattern[str]) -> Iterator[Document]:
    held, begun = "", False  # begun: a piece of this document has been given already
    for piece in pieces:
        *whole, held = _between(held + piece, boundary)
        for text in whole:
            if begun or text.strip():
                yield Document(text)
            begun = False
        solid = len(held.rstrip("\n\t ")) if boundary.pattern != "(?!)" else len(held)
        if solid >= _PIECE // 4:
            yield Document(held[:solid], ends=False)
            held, begun = held[solid:], True
    if begun or held.strip():
        yield Document(held)


def _between(text: str, boundary: re.Pattern[str]) -> list[str]:
    """Return what lies between the boundaries; one at the very end may still grow, and is left where it is."""
    parts, start = [], 0
    for match in boundary.finditer(text):
        if match.end() < len(text):
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _json_documents(file: Path, mended: _Mended, digest: _Digest | None) -> Iterator[Document]:
    with open_regular(file) as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if digest:
                digest.update(line)
            what = f"line {number:,} of {safe_line(str(file))}"
            if len(line) >= _LONGEST_LINE:
                raise UserError(f"{what} is longer than {_LONGEST_LINE >> 20} MiB")
            if line.strip():
                yield _record(parse_json(line.removeprefix(codecs.BOM_UTF8), what), what, mended)


def _record(record: Any, what: str, mended: _Mended) -> Document:
    match record:
        case {"messages": list(messages)} if messages:
            return Document(messages=tuple(_message(message, what, mended) for message in messages))
        case {"text": str(text)}:
            return Document(_composed(text, mended))
    shown = safe_line(json.dumps(record, ensure_ascii=False))
    raise UserError(f'{what} must be an object with "text" (a string) or "messages" (a list), not {shown:.60}')


def _message(message: Any, what: str, mended: _Mended) -> Message:
    match message:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return Message(role, _composed(content, mended))
    shown = safe_line(json.dumps(message, ensure_ascii=False))
    raise UserError(
        f'a message of {what} must have a "role" (system, user or assistant) and "content" (a string), not {shown:.60}'
    )
