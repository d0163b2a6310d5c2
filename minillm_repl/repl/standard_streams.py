"""The three standard streams as a shell may leave them: closed, full, piped, not text."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _

_MAX_BYTES = 16 << 20  # bytes of a prompt, or of a line of a script: more than any context holds
_OTHER_BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",  # after UTF-32, which begins alike
    codecs.BOM_UTF16_BE: "UTF-16",
}


class OutputLost(Exception):  # noqa: N818 - what happened, not whose error it is
    """Stdout takes no more: a full disk, or it is closed."""


class _Stdout(io.FileIO):
    """Stdout that is no terminal.

    Raises OutputLost, and BrokenPipeError where the reader has gone.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(
                _("cannot write stdout: {error}", error=_error_reason(error))
            ) from None


class _Stderr(io.FileIO):
    """Stderr that is no terminal; what it does not take is lost, and nothing else."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def open_streams() -> None:
    """Let the standard streams fail in words of ours, and those that are closed too.

    Without the latter, the next file that is opened would get the number of a closed stream, and
    what others print.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), encoding="utf-8")
    sys.stdout = _output(sys.stdout, _Stdout, os.O_RDONLY)
    sys.stderr = _output(sys.stderr, _Stderr, os.O_WRONLY)


def _output(stream: TextIO | None, kind: type[io.FileIO], flags: int) -> TextIO:
    """Return what is written to in place of a stream; in place of none, what leads nowhere."""
    if stream is None:
        return io.TextIOWrapper(
            io.BufferedWriter(kind(os.open(os.devnull, flags), "w")), encoding="utf-8"
        )
    # a terminal has ways of its own on Windows
    if type(stream) is not io.TextIOWrapper or stream.isatty():
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextmanager
def flush_output() -> Iterator[None]:
    """Make sure at the end that all output is written. Raises OutputLost, and BrokenPipeError."""
    try:
        yield
    finally:
        sys.stdout.flush()


def discard_output() -> None:
    """Let stdout, which cannot be written, lead nowhere: otherwise Python fails at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def decoded_lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a pipe as text, each with one newline, without a byte order mark.

    Raises UserError if it cannot be read or is no UTF-8 text.
    """
    for number, line in enumerate(_lines(stream), 1):
        if number == 1:
            for mark, name in _OTHER_BOMS.items():
                if line.startswith(mark):
                    raise UserError(
                        _(
                            "stdin is {name}, not UTF-8; `iconv -f {name} -t UTF-8` converts it",
                            name=name,
                        )
                    )
        text = _decode_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, number)
        yield text[:-2] + "\n" if text.endswith("\r\n") else text


def read_text(stream: IO[bytes]) -> str:
    """Return all of a pipe as text.

    Raises UserError as `decoded_lines` does, and for a pipe that does not end.
    """
    text, length = io.StringIO(newline=""), 0
    for line in decoded_lines(stream):
        length += text.write(line)
        if length > _MAX_BYTES:
            raise _too_long()
    return text.getvalue()


def _too_long() -> UserError:
    return UserError(
        _("stdin is longer than {size} MiB: no model reads that much", size=_MAX_BYTES >> 20)
    )


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    try:
        while line := stream.readline(_MAX_BYTES + 1):
            if len(line) > _MAX_BYTES:
                raise _too_long()
            yield line
    except OSError as error:
        raise UserError(_("cannot read stdin: {error}", error=_error_reason(error))) from None


def _decode_line(line: bytes, number: int) -> str:
    if b"\0" in line:
        raise UserError(_("stdin is not text: line {n} has a NUL byte", n=number))
    try:
        return line.decode()
    except UnicodeDecodeError:
        pass
    with suppress(UnicodeDecodeError):
        line.decode("cp949")
        raise UserError(
            _(
                "stdin is not UTF-8 text (line {n}); for Korean, try `iconv -f CP949 -t UTF-8`",
                n=number,
            )
        )
    raise UserError(_("stdin is not UTF-8 text (line {n})", n=number))


def _error_reason(error: OSError) -> str:
    return _("it is closed") if error.errno == errno.EBADF else os_error_text(error)
