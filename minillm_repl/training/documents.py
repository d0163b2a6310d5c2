"""Documents, and where those of a text file end."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from minillm_repl.chat import Message
from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding

# characters in a piece of a long document, and bytes of a file that are read at once
CHUNK_SIZE = 1 << 20
# characters at the end of what was read, where a boundary may have begun and is not whole yet
_LOOKAHEAD = 2_048
# A line of more spaces is not blank: what has to be held is bounded.
_BLANK, _END_MARK = r"[^\S\n]{0,1000}+\n", r"<\|endoftext\|>\n"
_BOUNDARY = {  # each begins with the line end of the document before it
    "gaps": re.compile(
        rf"\n(?:(?:{_BLANK}){{2}}|(?:{_BLANK})?{_END_MARK})(?:{_BLANK}|{_END_MARK})*+"
    ),
    "blank-lines": re.compile(rf"\n(?:{_BLANK}|{_END_MARK})++"),
    "lines": re.compile(rf"\n(?:{_BLANK}|{_END_MARK})*+"),
    "marks": re.compile(rf"\n{_END_MARK}(?:{_END_MARK})*+"),
    "files": re.compile(r"(?!)"),
    "whole": re.compile(r"(?!)"),
}
END_MARK = "\n<|endoftext|>\n"  # a boundary, whatever the way of splitting
_CUT_PATTERNS = [re.compile(rf".*{place}", re.DOTALL) for place in (r"\S(?= )", r".(?=\n)")]


@dataclass(frozen=True)
class Document:
    """A document, or a piece of a long one: a text, or a conversation."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    is_complete: bool = True  # False: the next piece belongs to the same document

    @property
    def texts(self) -> tuple[str, ...]:
        """All text in it."""
        return (self.text, *(message.content for message in self.messages))


@dataclass
class Repairs:
    """What had to be mended in reading."""

    normalised_newlines: bool = False
    removed_bom: bool = False
    normalised_nfc: bool = False
    has_preferences: bool = False
    has_tool_descriptions: bool = False
    lists: list[str] = field(default_factory=list)  # files whose lines are documents
    # files by what they hold, if their names say something else
    files_by_content: dict[str, list[str]] = field(default_factory=dict)
    # files by their encoding that is not UTF-8
    files_by_encoding: dict[str, list[str]] = field(default_factory=dict)

    def record_file(
        self, name: str, encoding: DetectedEncoding, *, is_text: bool, is_list: bool, holds: str
    ) -> None:
        """Take note of how a file was written and read; `holds` is empty if its name says it."""
        if is_list:
            self.lists.append(name)
        if holds:
            self.files_by_content.setdefault(holds, []).append(name)
        # In JSON and in tables, line ends are no part of a text.
        self.normalised_newlines |= is_text and encoding.has_foreign_newlines
        self.removed_bom |= encoding.has_byte_order_mark and not encoding.display_name
        if encoding.display_name:
            self.files_by_encoding.setdefault(encoding.display_name, []).append(name)

    def notes(self, is_folder: bool) -> list[str]:
        """Return what is to be told of it, a line each; of a folder, also of which file."""
        about_files = [
            *(
                (_("holds {what} and is read as such", what=what), names)
                for what, names in self.files_by_content.items()
            ),
            *(
                (_("read as {encoding}", encoding=encoding), names)
                for encoding, names in self.files_by_encoding.items()
            ),
        ]
        if self.lists:
            note = _("each line is a document; documents=whole learns it as one text")
            about_files.insert(0, (note, self.lists))
        notes = {
            _("a byte order mark at the start was dropped"): self.removed_bom,
            _("line endings were converted to newlines"): self.normalised_newlines,
            _("decomposed letters (NFD) were composed (NFC)"): self.normalised_nfc,
            _("preference pairs: the chosen answers are learnt"): self.has_preferences,
            _("descriptions of tools are left out"): self.has_tool_descriptions,
        }
        named = [with_file_name(note, names if is_folder else []) for note, names in about_files]
        return [*named, *(note for note, applied in notes.items() if applied)]


def with_file_name(note: str, files: list[str]) -> str:
    """Return a note after the name of the first file it is about, and how many more there are."""
    if not files:
        return note
    first, more = safe_line(files[0]), len(files) - 1
    label = _n("{first} and {n} more", "{first} and {n} more", more, first=first) if more else first
    return f"{label}: {note}"


def text_documents(chunks: Iterator[str], split: str, repairs: Repairs) -> Iterator[Document]:
    """Cut a text into documents, and those that are long into pieces; all become NFC.

    `split` says where a document ends: `lines`, `blank-lines`, `gaps` (two blank lines, or the
    mark), `marks` (a line `<|endoftext|>`), `files` or `whole` (nowhere).
    """
    # The newline of a line in a list is no part of it: the separator says that it ends.
    kept = 0 if split == "lines" else 1
    return _split_documents(_normalise_chunks(chunks, repairs), _BOUNDARY[split], kept)


def _normalise_chunks(chunks: Iterator[str], repairs: Repairs) -> Iterator[str]:
    """Yield a text as NFC, in pieces between which nothing is composed."""
    pending = ""
    for text in chunks:
        pending += text
        cut = _normalisation_boundary(pending) if text else 0
        if cut:
            yield normalise_nfc(pending[:cut], repairs)
            pending = pending[cut:]
    if pending:
        yield normalise_nfc(pending, repairs)


def _normalisation_boundary(text: str) -> int:
    """Return where a text can be cut, nothing composed across: before its last space or newline."""
    cut = max(text.rfind(" "), text.rfind("\n"))
    if cut <= 0 and len(text) > 4 * CHUNK_SIZE:
        cut = next(
            (position for position in range(len(text) - 1, 0, -1) if text[position] < "\u0300"),
            len(text),
        )
    return max(cut, 0)


def normalise_nfc(text: str, repairs: Repairs) -> str:
    """Return a text as NFC."""
    if unicodedata.is_normalized("NFC", text):
        return text
    repairs.normalised_nfc = True
    return unicodedata.normalize("NFC", text)


def _split_documents(
    chunks: Iterator[str], boundary: re.Pattern[str], kept: int
) -> Iterator[Document]:
    """Cut a text into documents, and those that are long into pieces; `kept` characters of a
    boundary belong to the document before it.
    """
    # what is not given out yet begins at `place`; a text begins as after a line
    text, position = "\n", 1
    for chunk in chain(chunks, (None,)):
        is_last = chunk is None
        text, position = text[position - 1 :] + (chunk or ""), 1
        newline_added = is_last and not text.endswith("\n")
        text += "\n" * newline_added
        # a boundary that begins before here can be seen whole
        safe_end = len(text) - _LOOKAHEAD * (not is_last)
        for match in boundary.finditer(text):
            if match.start() >= safe_end:
                break
            if match.start() >= position:
                yield Document(text[position : match.start() + kept])
            position = match.end()
        if position > max(1, safe_end) and not is_last:  # the boundary may go on
            text, position = END_MARK + text[position:], 1
            continue
        while len(text) - position > CHUNK_SIZE + _LOOKAHEAD:
            stop = _chunk_end(text, position, position + CHUNK_SIZE)
            yield Document(text[position:stop], is_complete=False)
            position = stop
        if is_last and position < len(text) - newline_added:
            yield Document(text[position : len(text) - newline_added])


def split_long_documents(documents: Iterator[Document], size: int) -> Iterator[Document]:
    """Cut texts of more than `size` characters; conversations stay whole."""
    for document in documents:
        if document.messages:
            yield document
            continue
        *chunks, last = split_chunks(document.text, size)
        yield from (Document(chunk, is_complete=False) for chunk in chunks)
        yield Document(last, is_complete=document.is_complete)


def split_chunks(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most `size` characters, between words where there are any."""
    position = 0
    while len(text) - position > size:
        stop = _chunk_end(text, position, position + size)
        yield text[position:stop]
        position = stop
    yield text[position:]


def _chunk_end(text: str, start: int, stop: int) -> int:
    """Return the last good place to cut that is at most `stop`, and after `start`: before a
    space, after a word.
    """
    window = max(start, stop - _LOOKAHEAD)
    matches = (pattern.match(text, window, stop + 1) for pattern in _CUT_PATTERNS)
    return next((match.end() for match in matches if match), stop)
