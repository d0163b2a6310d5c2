"""Arrays that stay in files, which are mapped and not held in memory."""

import mmap
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


def open_temporary(stack: ExitStack, folder: Path | None, count: int) -> list[IO[bytes]]:
    """Return files to write to, which the stack closes: in a folder if that is possible, each with
    a name to be replaced by another before then; else without names. Raises OSError.
    """
    if folder is not None:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return [_named_temporary(stack, folder) for _file in range(count)]
    return [stack.enter_context(tempfile.TemporaryFile()) for _file in range(count)]


def _named_temporary(stack: ExitStack, folder: Path) -> IO[bytes]:
    # Readable by the user alone; the caller's stack closes it.
    temporary = tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False)  # noqa: SIM115
    file = stack.enter_context(temporary)
    # The file stays if it has another name by then.
    stack.callback(lambda: Path(file.name).unlink(missing_ok=True))
    return file


def memory_map(file: IO[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return what was written to a file as an array (count,) that stays on disk."""
    file.flush()
    if not file.tell():  # nothing can be mapped
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode="r")


def release(array: NDArray[Any] | None) -> None:
    """Give a mapped file's pages back: it may exceed memory, and stays in the system cache."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
