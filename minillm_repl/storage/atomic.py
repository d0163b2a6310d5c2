"""Replacing a file so that at every moment the old one or the new one is there, whole."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.unfinished import clear_abandoned, temporary_path

# bytes that are written and synced between two looks at whether the user wants to stop
_CHUNK_BYTES = 8 << 20

Chunks = Sequence[bytes | memoryview]  # of a file, one after the other


def write_atomically(
    path: Path,
    *data: bytes | memoryview,
    private: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Put `data`, part after part, at `path`: temporary file in the same folder, fsync, rename,
    fsync of the folder.

    A link is followed and stays a link; permissions of a replaced file are kept. A new file has the
    user's usual permissions, or is for the user alone if `private`. What a save that was killed has
    left in the folder is removed. Raises UserError, with nothing changed and nothing left behind,
    if the target is not a regular file, or is one that is protected from writing, if the system
    refuses, or when interrupted.
    """
    with convert_os_errors(path):
        target = _resolve(path)
        clear_abandoned(target.parent)
        _write(target, data, 0o600 if private else 0o666, interrupted)


@contextmanager
def convert_os_errors(path: Path) -> Iterator[None]:
    """Turn what the system says against a save to `path` into a UserError of one line."""
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
    """Make the folder that `path` will lie in, where it is not there.

    Raises UserError if the system refuses.
    """
    with convert_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def check_can_save(path: Path) -> None:
    """Raise UserError if nothing can be saved at `path`: told before long work, not after it.

    Nothing is left there.
    """
    with convert_os_errors(path):
        target = _resolve(path)
        if target.exists():
            _check_writable(target)
        with temporary_path(
            next(folder for folder in target.parents if folder.exists()), Path.touch
        ):
            pass


def write_folder_atomically(
    path: Path, files: Mapping[str, Chunks], interrupted: Callable[[], bool] = lambda: False
) -> None:
    """Make a folder at `path` with these files in it: it is there whole, or not at all.

    Raises UserError, with nothing changed, if something other than an empty folder is there, if the
    system refuses, or when interrupted.
    """
    with convert_os_errors(path):
        target = _resolve(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(
                _(
                    "{path} exists and is not an empty folder; save under another name",
                    path=safe_line(str(path)),
                )
            )
        clear_abandoned(target.parent)
        with temporary_path(target.parent, Path.mkdir) as temporary:
            for file, data in files.items():
                _write(temporary / file, data, interrupted=interrupted)
            temporary.rename(target)  # over an empty folder too
        _sync_folder(target.parent)


def _resolve(path: Path) -> Path:
    """Return where a path leads, all links followed; the last may lead to what is not there yet.

    Raises OSError.
    """
    try:
        return path.resolve(strict=True)
    except RuntimeError:  # how pathlib says that links lead in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    except FileNotFoundError:
        return path.resolve()


def _write(
    target: Path,
    data: Chunks,
    mode: int = 0o666,  # less the umask
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
                    with suppress(OSError):  # only the administrator can give a file to somebody
                        os.chown(temporary, replaced.st_uid, replaced.st_gid)
                temporary.chmod(mode)  # the umask may have taken some away
            unsynced = 0  # bytes that are not on the disk yet
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
                if unsynced >= _CHUNK_BYTES:  # a disk may take long over all of it
                    _sync_file(file)
                    unsynced = 0
            _sync_file(file)
        temporary.replace(target)
    _sync_folder(target.parent)


def _check_writable(target: Path) -> None:
    # the folder would let us, but somebody has protected the file
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _sync_file(file: BinaryIO) -> None:
    """Make what was written to a file last."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last.

    It is in its place by now: what cannot be synced is no failure.
    """
    if hasattr(os, "O_DIRECTORY"):  # Windows has no way to sync a folder
        with suppress(OSError):  # nor have some network file systems
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
