"""Texts of files that go into a prompt: `@FILE` in it, or `:read FILE` before it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.paths import exists, user_path

MAX_BYTES = 4 << 20  # of a file for a prompt: a context of a million tokens holds no more
# `@` begins a word; a name with spaces stands in quotes.
_MENTION = re.compile(r"(?<!\S)@(\"[^\"\n]+\"|'[^'\n]+'|\S+)")
_AFTER_NAME = ",.;:!?)]}”’\"'"  # what a sentence puts after a name


@dataclass(frozen=True)
class ReadFile:
    """The text of a file, and what to say of it."""

    path: Path
    text: str
    notes: tuple[str, ...] = ()  # its encoding, if it is unusual

    def describe(self, n_tokens: int) -> str:
        """Return the line that says that it was read."""
        return _n(
            "read {path}: {n:,} token, {characters:,} characters",
            "read {path}: {n:,} tokens, {characters:,} characters",
            n_tokens,
            path=safe_line(str(self.path)),
            characters=len(self.text),
        )


def read_file(path: Path, most: int = MAX_BYTES) -> ReadFile:
    """Return the text of a file of at most `most` bytes; its last newline is left out.

    Raises UserError for a longer file, and for one that is no text.
    """
    name, detected = safe_line(str(path)), DetectedEncoding()
    size = path.stat().st_size if path.is_file() else 0
    chunks, length = list[str](), 0
    # A compressed file may be small and its text long.
    for chunk in () if size > most else read_text_chunks(path, detected):
        chunks.append(chunk)
        length += len(chunk.encode("utf-8", "replace"))
        if length > most:
            size = length
            break
    if size > most:
        raise UserError(
            _(
                "{name} has {size:,.1f} MiB or more: a prompt takes {most} MiB at most; `:train` "
                "and `:eval` read longer texts",
                name=name,
                size=size / 2**20,
                most=most >> 20,
            )
        )
    return ReadFile(path, "".join(chunks).removesuffix("\n"), detected.notes(path))


def fill_in(text: str, say: Callable[[str], None], told: Callable[[ReadFile], None]) -> str:
    """Return a prompt with the text of each file that it mentions in place of `@FILE`.

    A word that names no file stays as it is; `say` gets a line on one that looks like a name of
    one. `told` gets each file that was read. Raises UserError for a file that cannot be read.
    """

    def replaced(mention: re.Match[str]) -> str:
        word = mention[1]
        is_quoted = word[0] in "\"'" and word[-1] == word[0] and len(word) > 2
        names = [word[1:-1]] if is_quoted else [word, word.rstrip(_AFTER_NAME)]
        for name in filter(None, names):
            path = user_path(name)
            if exists(path) and not path.is_dir():
                found = read_file(path)
                told(found)
                return found.text + ("" if is_quoted else word[len(name) :])
        if is_quoted or "/" in word or re.search(r"\.\w{1,8}$", names[-1]):
            say(_("@{name} is no file here; it is sent as it is", name=safe_line(names[-1][:80])))
        return mention[0]

    return _MENTION.sub(replaced, text)
