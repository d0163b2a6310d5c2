"""Documents, and where those of a text file end."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from minillm_repl.chat.template import Message
from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import Written

# characters in a piece of a long document, and bytes of a file that are read at once
PIECE = 1 << 20
# characters at the end of what was read, where a boundary may have begun and is not whole yet
_HELD = 2_048
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
class Mended:
    """What had to be mended in reading."""

    ends: bool = False
    mark: bool = False
    composed: bool = False
    files: dict[str, list[str]] = field(default_factory=dict)  # by the encoding that is not UTF-8

    def read(self, name: str, written: Written, *, lines: bool) -> None:
        """Take note of how a file of that name was written; with `lines`, the ends of its lines
        are part of it.
        """
        self.ends |= lines and written.ends
        self.mark |= written.mark and not written.told
        if written.told:
            self.files.setdefault(written.told, []).append(name)

    def notes(self, folder: bool) -> list[str]:
        """Return what is to be told of it, a line each; of a folder, also of which file."""
        notes = {
            _("a byte order mark at the start was dropped"): self.mark,
            _("line ends of other systems became newlines"): self.ends,
            _("letters written in parts (NFD) were put together (NFC)"): self.composed,
        }
        read_as = [
            named(_("read as {encoding}", encoding=encoding), names if folder else [])
            for encoding, names in self.files.items()
        ]
        return [*read_as, *(note for note, happened in notes.items() if happened)]


def named(note: str, files: list[str]) -> str:
    """Return a note after the name of the first file that it is about, and how many more there
    are.
    """
    if not files:
        return note
    first, more = safe_line(files[0]), len(files) - 1
    who = _n("{first} and {n} more", "{first} and {n} more", more, first=first) if more else first
    return f"{who}: {note}"


def text_documents(stretches: Iterator[str], split: str, mended: Mended) -> Iterator[Document]:
    """Cut a text into documents, and those that are long into pieces; all become NFC."""
    return _cut_at(_whole_letters(stretches, mended), _BOUNDARY[split])


def _whole_letters(stretches: Iterator[str], mended: Mended) -> Iterator[str]:
    """Yield a text as NFC, in pieces between which nothing is composed."""
    held = ""
    for text in stretches:
        held += text
        cut = _last_cut(held) if text else 0
        if cut:
            yield composed(held[:cut], mended)
            held = held[cut:]
    if held:
        yield composed(held, mended)


def _last_cut(text: str) -> int:
    """Return where a text can be cut with nothing composed across: before its last space or
    newline.
    """
    cut = max(text.rfind(" "), text.rfind("\n"))
    if cut <= 0 and len(text) > 4 * PIECE:
        cut = next(
            (place for place in range(len(text) - 1, 0, -1) if text[place] < "\u0300"), len(text)
        )
    return max(cut, 0)


def composed(text: str, mended: Mended) -> str:
    """Return a text as NFC."""
    if unicodedata.is_normalized("NFC", text):
        return text
    mended.composed = True
    return unicodedata.normalize("NFC", text)


def _cut_at(stretches: Iterator[str], boundary: re.Pattern[str]) -> Iterator[Document]:
    """Cut a text into documents, and those that are long into pieces."""
    # what is not given out yet begins at `place`; a text begins as after a line
    text, place = "\n", 1
    for more in chain(stretches, (None,)):
        last = more is None
        text, place = text[place - 1 :] + (more or ""), 1
        added = last and not text.endswith("\n")
        text += "\n" * added
        # a boundary that begins before here can be seen whole
        sure = len(text) - _HELD * (not last)
        for match in boundary.finditer(text):
            if match.start() >= sure:
                break
            if match.start() >= place:
                yield Document(text[place : match.start() + 1])
            place = match.end()
        if place > max(1, sure) and not last:  # the boundary may go on
            text, place = _ONE_BOUNDARY + text[place:], 1
            continue
        while len(text) - place > PIECE + _HELD:
            stop = _cut(text, place, place + PIECE)
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
    """Return the last good place to cut that is at most `stop`, and after `start`: before a
    space, after a word.
    """
    window = max(start, stop - _HELD)
    found = (pattern.match(text, window, stop + 1) for pattern in _CUTS)
    return next((match.end() for match in found if match), stop)
