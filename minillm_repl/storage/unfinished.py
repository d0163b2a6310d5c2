"""Temporary files of a save, `.minillm-….tmp`.

The writing process locks its file. The lock ends with the process, so an unlocked temporary file
is an abandoned one.
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
    """Make a temporary file or folder in `folder` with `make`, yield its path, then remove it.

    A file that was moved elsewhere meanwhile stays. Raises OSError.
    """
    while True:
        lock = None
        temporary = folder / f".minillm-{secrets.token_hex(8)}.tmp"
        try:
            make(temporary)
            lock = try_lock(temporary, wait=True)
            # Before the lock, another process may have removed it as an abandoned file.
            if temporary.exists():
                yield temporary
                return
        finally:
            _remove(temporary)
            _unlock(lock)


def clear_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY_NAME.fullmatch(path.name):
                lock = try_lock(path, wait=False)
                if lock is not None:
                    _remove(path)
                    _unlock(lock)


def try_lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder and return the descriptor.

    Return None if another process holds the lock, or if the system has no such locks.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked, or a network file system without locks
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
