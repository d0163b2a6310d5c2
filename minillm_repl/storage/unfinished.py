"""Unfinished files of a save, `.minillm-….tmp`: whoever writes one holds a lock on it that ends
with the process.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY_NAME = re.compile(r"\.minillm-[0-9a-f]{16}\.tmp")


@contextmanager
def temporary_path(folder: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Have an unfinished file or folder made in `folder`, and give its path; what is still there at
    the end is removed.

    Raises OSError.
    """
    while True:
        lock, temporary = None, folder / f".minillm-{secrets.token_hex(8)}.tmp"
        try:
            make(temporary)
            lock = try_lock(temporary, wait=True)
            if temporary.exists():  # else it was just made, and taken for an abandoned one
                yield temporary
                return
        finally:
            _remove(temporary)
            _unlock(lock)


def clear_abandoned(folder: Path) -> None:
    """Remove what killed saves have left in a folder; what a living process writes stays."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY_NAME.fullmatch(path.name):
                lock = try_lock(path, wait=False)
                if lock is not None:
                    _remove(path)
                    _unlock(lock)


def try_lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder; return None where somebody else has, or there are no such locks."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # some network file systems have none either: nothing is cleared there
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        with suppress(OSError):
            os.close(lock)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
