"""A journal: a file of JSON lines that only grows. A kill loses no line that was appended.

Each append is one write of whole lines, and a sync. A line without its end was being written when
the program was killed: it does not count. Only the owner may read the file, and one process at a
time may append to it.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import open_regular, parse_json

_MAX_BYTES = 32 << 20  # bytes of a journal that is read: a long talk has a few MiB
_MAX_LINES = 100_000
_MAX_LINE_PARTS = 4_000_000  # values of a line; a turn has one for each token
# Controls above ASCII and what reorders or hides a text: escaped, so that `cat` is harmless.
_UNSAFE = re.compile("[\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")

Record = dict[str, Any]


class Journal:
    """A journal that is open to append to, and locked. Closing it, or a kill, unlocks it."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises UserError if that fails, or if it is open elsewhere."""
        self.path = path
        name = safe_line(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            harmless = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            self._descriptor = os.open(path, flags | harmless, 0o600)
        except (OSError, ValueError) as error:
            why = os_error_text(error) if isinstance(error, OSError) else _("invalid file name")
            raise UserError(_("cannot open {name}: {error}", name=name, error=why)) from None
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise UserError(_("{name} is not a regular file", name=name))
            if not _lock(self._descriptor):
                raise UserError(_("{name} is open in another window", name=name))
            with suppress(OSError, AttributeError):  # Windows has no such permissions
                os.fchmod(self._descriptor, 0o600)
            self._drop_unfinished_line()
        except BaseException:
            self.close()
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Append records, each as a line, and wait until they are on the disk.

        Raises UserError if the system refuses; the file then is as it was.
        """
        data = b"".join(map(_line, records))
        if not data:
            return
        size = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except BaseException as error:  # Ctrl-C too: half a line would spoil the next one
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            if not isinstance(error, OSError):
                raise
            raise UserError(
                _(
                    "could not save {path}: {error}; nothing was changed there",
                    path=safe_line(str(self.path)),
                    error=os_error_text(error),
                )
            ) from None

    def close(self) -> None:
        """Close and unlock the file."""
        with suppress(OSError):
            os.close(self._descriptor)

    def _drop_unfinished_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        kept = size
        while kept:
            start = max(0, kept - (1 << 16))
            os.lseek(self._descriptor, start, os.SEEK_SET)
            end = os.read(self._descriptor, kept - start).rfind(b"\n")
            if end >= 0:
                kept = start + end + 1
                break
            kept = start
        if kept < size:
            os.ftruncate(self._descriptor, kept)


def read_journal(path: Path) -> Iterator[Record]:
    """Yield the records of a journal, an unfinished last line left out.

    Raises UserError naming the file and the line, if one is no JSON object or the file is too
    large.
    """
    name = safe_line(path.name)
    with open_regular(path) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UserError(_("{path} is larger than {size} MiB", path=name, size=_MAX_BYTES >> 20))
    if data.count(b"\n") > _MAX_LINES:
        raise UserError(_("{name} has more than {most:,} lines", name=name, most=_MAX_LINES))
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        where = _("{name}, line {number}", name=name, number=number)
        record = parse_json(line, where, _MAX_LINE_PARTS)
        if not isinstance(record, dict):
            raise UserError(_("{where} is not a JSON object", where=where))
        yield record


def _line(record: Record) -> bytes:
    text = json.dumps(record, ensure_ascii=False)
    text = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode("utf-8", "replace") + b"\n"


def _lock(descriptor: int) -> bool:
    """Lock an open file; False if another process has it. Some systems have no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True
