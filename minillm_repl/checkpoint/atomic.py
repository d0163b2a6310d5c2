"""Replacing a file so that at every moment the old one or the new one is there, whole."""

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Put `data` at `path`: temporary file in the same folder, fsync, rename, fsync of the folder.

    A link is followed and stays a link; permissions of a replaced file are kept. A new file has the user's usual
    permissions, or is for the user alone if `private`. Raises UserError, with nothing
    changed and nothing left behind, if the target is not a regular file or the system refuses.
    """
    try:
        _write(Path(os.path.realpath(path)), data, 0o600 if private else 0o666)
    except OSError as error:
        raise UserError(f"could not save {safe_line(str(path))}: {error.strerror}; nothing was changed there") from None
    except ValueError:
        raise UserError(f"could not save {safe_line(str(path))}: no file can have this name") from None


def write_folder_atomically(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder at `path` with these files in it: it is there whole, or not at all.

    Raises UserError, with nothing changed, if something other than an empty folder is there or the system refuses.
    """
    target = Path(os.path.realpath(path))
    name = safe_line(str(path))
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{name} is there and is not an empty folder; save under another name")
        temporary = target.parent / f".minillm-{secrets.token_hex(8)}.tmp"
        temporary.mkdir()
        try:
            for file, data in files.items():
                _write(temporary / file, data)
            temporary.rename(target)  # over an empty folder too
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(target.parent)
    except OSError as error:
        raise UserError(f"could not save {name}: {error.strerror}; nothing was changed there") from None
    except ValueError:
        raise UserError(f"could not save {name}: no folder can have this name") from None


def _write(target: Path, data: bytes, mode: int = 0o666) -> None:  # less the umask
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
    _sync(target.parent)


def _sync(folder: Path) -> None:
    """Make what was renamed in a folder last."""
    if hasattr(os, "O_DIRECTORY"):  # Windows has no way to sync a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some network file systems cannot; the file is in its place by now
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
