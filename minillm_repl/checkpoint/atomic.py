"""Replacing a file so that at every moment the old one or the new one is there, whole."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`: temporary file in the same folder, fsync, rename, fsync of the folder.

    A link is followed and stays a link; permissions of a replaced file are kept. Raises UserError, with nothing
    changed and nothing left behind, if the target is not a regular file or the system refuses.
    """
    try:
        _write(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise UserError(f"could not save {safe_line(str(path))}: {error.strerror}; nothing was changed there") from None
    except ValueError:
        raise UserError(f"could not save {safe_line(str(path))}: no file can have this name") from None


def _write(target: Path, data: bytes) -> None:
    mode = 0o666  # less the umask
    if target.exists():
        status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{safe_line(str(target))} is there and is not a regular file; save under another name")
        mode = stat.S_IMODE(status.st_mode)
    temporary = target.parent / f".minillm-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if target.exists():
                temporary.chmod(mode)  # the umask may have taken some away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # Windows has no way to sync a folder
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some network file systems cannot; the file is in its place by now
                os.fsync(folder)
        finally:
            os.close(folder)
