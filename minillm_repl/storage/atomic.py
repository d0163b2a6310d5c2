"""Atomic saving: at every moment the complete old file or the complete new one exists.

A new file is written under a temporary name, `.minillm-….tmp`, and renamed at the end. The writing
process locks it. The lock ends with the process, so an unlocked temporary file is an abandoned one.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

_CHUNK_BYTES = 8 << 20  # written and synced between two checks for Ctrl-C

_TEMPORARY_NAME = re.compile(r"\.minillm-[0-9a-f]{16}\.tmp")

Chunks = Sequence[bytes | memoryview]
"""The content of a file in parts, one after the other."""


def write_atomically(
    path: Path,
    *data: bytes | memoryview,
    private: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Write `data` to `path`: write a temporary file beside it, fsync, rename, fsync the folder.

    A link stays a link to the new content. A replaced file keeps its permissions. A new file gets
    the user's usual ones, or is readable only by the user if `private`. Abandoned temporary files
    in the folder are removed. Raises UserError if the target is not a writable regular file, if the
    system refuses, or when `interrupted` returns True. Nothing is changed then.
    """
    with convert_os_errors(path):
        target = _resolve(path)
        clear_abandoned(target.parent)
        _write(target, data, 0o600 if private else 0o666, interrupted)


@contextmanager
def convert_os_errors(path: Path) -> Iterator[None]:
    """Turn an error of the system on a save to `path` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            _(
                "could not save {path}: {error}; nothing was changed there",
                path=safe_line(str(path)),
                error=os_error_text(error),
            )
        ) from None
    except ValueError:
        raise UserError(
            _("could not save {path}: invalid file name", path=safe_line(str(path)))
        ) from None


def make_parent_folder(path: Path) -> None:
    """Make the parent folders of `path`. Raises UserError if the system refuses."""
    with convert_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def check_can_save(path: Path) -> None:
    """Raise UserError if nothing can be saved at `path`, so that long work is not lost later.

    The check leaves no file.
    """
    with convert_os_errors(path):
        target = _resolve(path)
        if target.exists():
            _check_writable(target)
        nearest_folder = next(folder for folder in target.parents if folder.exists())
        with temporary_path(nearest_folder, Path.touch):
            pass


def write_folder_atomically(
    path: Path, files: Mapping[str, Chunks], interrupted: Callable[[], bool] = lambda: False
) -> None:
    """Make a folder at `path` with these files: complete, or not at all.

    Raises UserError if `path` exists and is not an empty folder, if the system refuses, or when
    `interrupted` returns True. Nothing is changed then.
    """
    with convert_os_errors(path):
        check_no_folder(path)
        target = _resolve(path)
        clear_abandoned(target.parent)
        with temporary_path(target.parent, Path.mkdir) as temporary:
            for file, data in files.items():
                _write(temporary / file, data, interrupted=interrupted)
            temporary.rename(target)  # this replaces an empty folder
        _sync_folder(target.parent)


def check_no_folder(path: Path) -> None:
    """Raise UserError if there is anything at `path` but an empty folder."""
    with convert_os_errors(path):
        target = _resolve(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(
                _(
                    "{path} exists and is not an empty folder; save under another name",
                    path=safe_line(str(path)),
                )
            )


def _resolve(path: Path) -> Path:
    """Return a path with all links followed; the target need not exist. Raises OSError."""
    try:
        return path.resolve(strict=True)
    except RuntimeError:  # pathlib raises it for a circle of links
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    except FileNotFoundError:
        return path.resolve()


def _write(
    target: Path,
    data: Chunks,
    mode: int = 0o666,  # the umask removes some bits
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    replaced = target.stat() if target.exists() else None
    if replaced and not stat.S_ISREG(replaced.st_mode):
        raise UserError(
            _(
                "{target} exists and is not a regular file; save under another name",
                target=safe_line(str(target)),
            )
        )
    if replaced:
        _check_writable(target)
        mode = stat.S_IMODE(replaced.st_mode)
    with temporary_path(target.parent, lambda path: path.touch(mode, exist_ok=False)) as temporary:
        with temporary.open("wb") as file:
            if replaced:
                if hasattr(os, "chown"):
                    with suppress(OSError):  # only root can change the owner
                        os.chown(temporary, replaced.st_uid, replaced.st_gid)
                temporary.chmod(mode)  # without the umask
            unsynced = 0  # bytes since the last fsync
            for chunk in (
                part[at : at + _CHUNK_BYTES]
                for part in data
                for at in range(0, len(part), _CHUNK_BYTES)
            ):
                if interrupted():
                    raise UserError(
                        _(
                            "stopped: {target} was not saved and is unchanged",
                            target=safe_line(str(target)),
                        )
                    )
                unsynced += file.write(chunk)
                if unsynced >= _CHUNK_BYTES:  # one fsync of everything could take minutes
                    _sync_file(file)
                    unsynced = 0
            _sync_file(file)
        temporary.replace(target)
    _sync_folder(target.parent)


def _check_writable(target: Path) -> None:
    # The rename needs only a writable folder, but a read-only file is protected on purpose.
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _sync_file(file: BinaryIO) -> None:
    """Wait until the content of a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until a rename in a folder is on the disk.

    The file is in its place already, so an error here is ignored.
    """
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot sync a folder
        with suppress(OSError):  # some network file systems cannot either
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


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
