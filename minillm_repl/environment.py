"""What the program finds around it: streams that may be closed, full, piped or no text; variables;
a home and a folder to be in, which not every user has.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

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


@dataclass(frozen=True)
class Environment:
    """The streams and the variables of the program. Who needs one is given it."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    variables: Mapping[str, str]

    @property
    def world_size(self) -> int:
        """How many processes train together: torchrun says so."""
        return int(self.variables.get("WORLD_SIZE", "1"))

    @property
    def is_first_process(self) -> bool:
        """Whether this is the one process of several that draws."""
        return self.world_size == 1 or self.variables.get("RANK") == "0"

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """Make sure at the end that all output is written. Raises OutputLost, BrokenPipeError."""
        try:
            yield
        finally:
            self.stdout.flush()

    def discard_output(self) -> None:
        """Let stdout, which cannot be written, lead nowhere: otherwise Python fails at its end."""
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stdout.fileno())


def process_environment() -> Environment:
    """Return the environment of this process, with what it lacks put right.

    Streams fail in our words, and are never closed: the next file that is opened would get the
    number of a closed one, and what others print. They replace those of `sys`, because libraries
    print there too.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), encoding="utf-8")
    sys.stdout = _output(sys.stdout, _Stdout, os.O_RDONLY)
    sys.stderr = _output(sys.stderr, _Stderr, os.O_WRONLY)
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path's own raises then
        # A user whom the system does not know, as containers run programs, has no home: this is
        # one in which nothing can be kept.
        os.environ["HOME"] = os.devnull
    for size in ("COLUMNS", "LINES"):
        if os.environ.get(size) == "0":  # a container, or a serial line, does not know
            del os.environ[size]
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:  # a terminal that cannot show Hangul must not end the program
            reconfigure(errors="backslashreplace")
    return Environment(sys.stdin, sys.stdout, sys.stderr, os.environ)


def leave_missing_folder() -> str | None:
    """Go home if the present folder has been deleted, and return what to say; else return None.

    Libraries end the process in a folder that no longer exists.
    """
    try:
        os.getcwd()  # noqa: PTH109 - all that is asked is whether it raises
    except FileNotFoundError:
        os.chdir("/")
        with suppress(OSError):
            os.chdir(os.path.expanduser("~"))  # noqa: PTH111 - as above
        return _(
            "the folder where this session started no longer exists: file names now "
            "refer to {folder}",
            folder=safe_line(os.getcwd()),  # noqa: PTH109 - as above
        )
    return None


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


def spool_stdin(environment: Environment, stack: ExitStack) -> Path:
    """Return a file with all of stdin, which is read more than once. Raises UserError."""
    from shutil import copyfileobj
    from tempfile import TemporaryDirectory

    if environment.stdin.isatty():
        raise UserError(_("`--train -` reads the text from stdin, which is a terminal here"))
    folder = stack.enter_context(TemporaryDirectory(prefix="minillm-repl-"))
    path = Path(folder) / "stdin"
    try:
        with path.open("wb") as file:
            copyfileobj(environment.stdin.buffer, file)
    except OSError as error:
        raise UserError(_("cannot read stdin: {error}", error=os_error_text(error))) from None
    return path


def _error_reason(error: OSError) -> str:
    return _("it is closed") if error.errno == errno.EBADF else os_error_text(error)
