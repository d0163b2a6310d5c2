"""Corpora: text files, folders of them and JSON lines, read in a stream as documents."""

import codecs
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.conversation import Message
from minillm_repl.checkpoint.header import open_regular, parse_json
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

_PIECE = 1 << 20  # bytes read at once, and characters in a piece of a long document
_JSON, _TEXT = (".jsonl", ".ndjson"), (".txt", ".md")
_LONGEST_LINE = 64 << 20  # bytes of one line of JSON
_MOST_FILES = 100_000
_POINTS = 0x110000  # Unicode has so many code points
_HELD = 2_048  # characters at the end of what was read, where a boundary may have begun and is not whole yet
# A line of more spaces is not blank: what has to be held is bounded.
_BLANK, _MARK = r"[^\S\n]{0,1000}+\n", r"<\|endoftext\|>\n"
_BOUNDARY = {  # each begins with the line end of the document before it
    "auto": re.compile(rf"\n(?:(?:{_BLANK}){{2}}|(?:{_BLANK})?{_MARK})(?:{_BLANK}|{_MARK})*+"),
    "blank-lines": re.compile(rf"\n(?:{_BLANK}|{_MARK})++"),
    "marks": re.compile(rf"\n{_MARK}(?:{_MARK})*+"),
    "whole": re.compile(r"(?!)"),
}
_ONE_BOUNDARY = "\n<|endoftext|>\n"  # whatever the way of splitting
_CUTS = [re.compile(rf".*{place}", re.DOTALL) for place in (r"\S(?= )", r".(?=\n)")]
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


def open_corpus(path: Path, split: str = "auto", interrupted: Callable[[], bool] = lambda: False) -> Corpus:
    """Look through a corpus once: its documents, its characters, its digest.

    `split` says where a text file's documents end: `auto` (at a line `<|endoftext|>`, and at two or more blank lines
    where that is more than an accident), `blank-lines` (one is enough) or `whole` (nowhere). Each line of JSON lines
    and each file of a folder is a document in any case. Raises UserError naming the file, if it cannot be read, is not
    what its ending says, or is empty; or when it is interrupted.
    """
    corpus = _look_through(path, split, interrupted)
    if split == "auto" and 1 < corpus.count < _FEW and corpus.files == (path,):
        return _look_through(path, "marks", interrupted)
    return corpus


def _look_through(path: Path, split: str, interrupted: Callable[[], bool]) -> Corpus:
    folder = os.path.isdir(path)  # noqa: PTH112 - Path's own raises for a name that is too long
    files = tuple(_files(path)) if folder else (path,)
    mended, found = _Mended(), hashlib.sha256()
    characters = np.zeros(_POINTS, dtype=np.int64)
    count, conversations, texts = 0, False, False
    waiting, length = list[str](), 0
    for file in files:
        if folder:
            found.update(str(file.relative_to(path)).encode("utf-8", "surrogateescape") + b"\0")
        for document in _documents(file, split, mended, found):
            conversations |= bool(document.messages)
            texts |= bool(document.text)
            count += document.ends
            waiting += document.texts
            length += sum(map(len, document.texts))
            if length > _PIECE:  # counting takes as long for one character as for a million
                characters += _counts(waiting)
                waiting, length = [], 0
                if interrupted():
                    raise UserError(_("stopped while reading {path}", path=safe_line(str(path))))
    characters += _counts(waiting)
    name = safe_line(str(path))
    if conversations and texts:
        raise UserError(_("{name} holds both texts and conversations; keep them in two corpora", name=name))
    if not characters[33:].any():
        raise UserError(_("{name} is empty: there is nothing to learn from", name=name))
    notes = {
        _("a byte order mark at the start was dropped"): mended.mark,
        _("line ends of other systems became newlines"): mended.ends,
        _("letters written in parts (NFD) were put together (NFC)"): mended.composed,
    }
    told = tuple(note for note, happened in notes.items() if happened)
    return Corpus(str(path), files, split, found.hexdigest(), count, conversations, characters, told)


def _counts(texts: list[str]) -> NDArray[np.int64]:
    """Return how often each code point occurs, (0x110000,)."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    return np.bincount(points, minlength=_POINTS)


def _files(folder: Path) -> Iterator[Path]:
    inside = folder.resolve()
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in (*_TEXT, *_JSON) and file.is_file() and file.resolve().is_relative_to(inside)
    )
    name = safe_line(str(folder))
    if not found:
        raise UserError(
            _(
                "there is no text in {name}: no file that ends in {endings}",
                name=name,
                endings=", ".join((*_TEXT, *_JSON)),
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
    held, place = "", 0
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
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
                wrong = _("byte {byte:#04x} at {at:,} of {size:,}", byte=error.object[error.start], at=at, size=size)
                raise UserError(
                    _("{file} is not UTF-8 text: {wrong}", file=safe_line(str(file)), wrong=wrong)
                ) from None
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


def _text_documents(stretches: Iterator[str], boundary: re.Pattern[str]) -> Iterator[Document]:
    """Cut a text into documents, and those that are long into pieces."""
    text, place = "\n", 1  # what is not given out yet begins at `place`; a text begins as after a line
    for more in chain(stretches, (None,)):
        last = more is None
        text, place = text[place - 1 :] + (more or ""), 1
        added = last and not text.endswith("\n")
        text += "\n" * added
        sure = len(text) - _HELD * (not last)  # a boundary that begins before here can be seen whole
        for match in boundary.finditer(text):
            if match.start() >= sure:
                break
            if match.start() >= place:
                yield Document(text[place : match.start() + 1])
            place = match.end()
        if place > max(1, sure) and not last:  # the boundary may go on
            text, place = _ONE_BOUNDARY + text[place:], 1
            continue
        while len(text) - place > _PIECE + _HELD:
            stop = _cut(text, place, place + _PIECE)
            yield Document(text[place:stop], ends=False)
            place = stop
        if last and place < len(text) - added:
            yield Document(text[place : len(text) - added])


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most `size` characters, between words where there are any."""
    place = 0
    while len(text) - place > size:
        stop = _cut(text, place, place + size)
        yield text[place:stop]
        place = stop
    yield text[place:]


def _cut(text: str, start: int, stop: int) -> int:
    """Return the last good place to cut that is at most `stop`, and after `start`: before a space, after a word."""
    window = max(start, stop - _HELD)
    found = (pattern.match(text, window, stop + 1) for pattern in _CUTS)
    return next((match.end() for match in found if match), stop)


def _json_documents(file: Path, mended: _Mended, digest: _Digest | None) -> Iterator[Document]:
    with open_regular(file) as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if digest:
                digest.update(line)
            what = _("line {number:,} of {file}", number=number, file=safe_line(str(file)))
            if len(line) >= _LONGEST_LINE:
                raise UserError(_("{what} is longer than {size} MiB", what=what, size=_LONGEST_LINE >> 20))
            if line.strip():
                yield _record(parse_json(line.removeprefix(codecs.BOM_UTF8), what), what, mended)


def _record(record: Any, what: str, mended: _Mended) -> Document:
    match record:
        case {"messages": list(messages)} if messages:
            return Document(messages=tuple(_message(message, what, mended) for message in messages))
        case {"text": str(text)}:
            return Document(_composed(_newlines(text, mended), mended))
    shown = safe_line(json.dumps(record, ensure_ascii=False))
    raise UserError(
        _(
            '{what} must be an object with "text" (a string) or "messages" (a list), not {shown:.60}',
            what=what,
            shown=shown,
        )
    )


def _newlines(text: str, mended: _Mended) -> str:
    mended.ends |= "\r" in text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _message(message: Any, what: str, mended: _Mended) -> Message:
    match message:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return Message(role, _composed(_newlines(content, mended), mended))
    shown = safe_line(json.dumps(message, ensure_ascii=False))
    raise UserError(
        _(
            'a message of {what} must have a "role" (system, user or assistant) and "content" (a'
            " string), not {shown:.60}",
            what=what,
            shown=shown,
        )
    )
