"""Files that may be compressed, by gzip or Zstandard: their first bytes tell."""

import gzip
import zlib
from importlib import import_module
from typing import Any, BinaryIO

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line


class Decompressed:
    """The bytes of a file, decompressed if it is gzip or Zstandard; some can be put back."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        magic = file.read(4)
        file.seek(0)
        self._name, self._back = name, b""
        self._file: Any = file
        self._errors: tuple[type[Exception], ...] = ()
        if magic.startswith(b"\x1f\x8b"):  # gzip (RFC 1952)
            self._file, self._errors = gzip.GzipFile(fileobj=file), (OSError, EOFError, zlib.error)
        elif magic == b"\x28\xb5\x2f\xfd":  # Zstandard (RFC 8878)
            self._file, self._errors = _open_zstandard(file, name)

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end. Raises UserError if they are damaged."""
        data = self._back[:size]
        self._back = self._back[size:]
        try:
            while len(data) < size and (more := self._file.read(size - len(data))):
                data += more
        except self._errors as error:
            raise UserError(
                _(
                    "{name} is damaged: {error:.200}",
                    name=self._name,
                    error=safe_line(str(error)),
                )
            ) from None
        return data

    def put_back(self, data: bytes) -> None:
        """Let the next reading begin with these bytes."""
        self._back = data + self._back


def _open_zstandard(file: BinaryIO, name: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return what decompresses a file, and its errors. Raises UserError without a library."""
    try:
        zstd = import_module("compression.zstd")  # Python 3.14
        return zstd.ZstdFile(file), (zstd.ZstdError, EOFError)
    except ImportError:
        pass
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        raise UserError(
            _(
                "{name} is compressed: `pip install zstandard` lets the program read it",
                name=name,
            )
        ) from None
    return _Zstandard(file, zstandard.ZstdDecompressor()), (zstandard.ZstdError, EOFError)


class _Zstandard:
    """The decompressed bytes of Zstandard's frames. Raises EOFError if the last one is cut off."""

    def __init__(self, file: BinaryIO, library: Any) -> None:
        self._file, self._library = file, library
        self._frame: Any = None
        self._data = b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        while not self._data:
            # A kilobyte can become 32 MB, and no more.
            compressed = (self._frame and self._frame.unused_data) or self._file.read(1_024)
            if not compressed:
                if self._frame and not self._frame.eof:
                    raise EOFError(_("the file is cut off"))
                return b""
            if self._frame is None or self._frame.eof:
                self._frame = self._library.decompressobj()
            self._data = self._frame.decompress(compressed)
        data, self._data = self._data[:size], self._data[size:]
        return data
