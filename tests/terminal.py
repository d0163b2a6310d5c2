"""A terminal for the tests: the program runs in a real pseudo-terminal, and pyte reads the
screen it draws.
"""

import os
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte
from wcwidth import wcwidth

PROMPT, PLACEHOLDERS = ">>> ", ("type the", "type a", "글의 첫머리", "하고 싶은 말")
# prompt_toolkit asks for bracketed paste each time that it begins to read a line
_PROMPT_BEGINS = b"\x1b[?2004h"
KEYS = {
    "enter": "\r",
    "alt-enter": "\x1b\r",
    "tab": "\t",
    "backspace": "\x7f",
    "up": "\x1b[A",
    "left": "\x1b[D",
    **{f"ctrl-{letter}": chr(ord(letter) - 96) for letter in "acdejklr"},
}

Wanted = str | re.Pattern[str] | Callable[["Terminal"], object]


class Screen(pyte.Screen):
    """pyte's screen, with a memory of what scrolled off it, and wide characters wrapped as
    terminals wrap them.
    """

    def __init__(self, columns: int, lines: int, answer: Callable[[str], None]) -> None:
        self.gone: list[str] = []
        self._answer = answer
        super().__init__(columns, lines)

    def write_process_input(self, data: str) -> None:
        self._answer(data)  # where the cursor is: prompt_toolkit asks before it draws a prompt

    def index(self) -> None:
        if self.cursor.y == self.lines - 1 and self.margins is None:
            self.gone.append(self.row(0))
        super().index()

    def draw(self, data: str) -> None:
        if data.isascii():
            super().draw(data)
            return
        # one at a time: pyte drops the rest of a text after a character without width
        for character in data:
            if wcwidth(character) == 2 and self.cursor.x == self.columns - 1:
                self.carriage_return()
                self.linefeed()
            super().draw(character)

    def cells(self, y: int) -> list[str]:
        """One string for each cell of a row; the second cell of a wide character is empty."""
        return [self.buffer[y][x].data for x in range(self.columns)]

    def row(self, y: int) -> str:
        return "".join(self.cells(y)).rstrip()


class Terminal:
    """A program in a pseudo-terminal, by default minillm-repl.

    Every wait ends, and if in vain shows the screen.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str],
        folder: Path,
        columns: int = 80,
        rows: int = 24,
        command: Sequence[str] = (sys.executable, "-m", "minillm_repl"),
    ) -> None:
        self.raw = b""
        self.screen = Screen(columns, rows, self.type)
        self._stream = pyte.ByteStream(self.screen)
        program, *first = command
        with warnings.catch_warnings():
            # Python 3.12 warns of forking a process with threads; the child execs at once.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.child = pexpect.spawn(
                program,
                [*first, *arguments],
                env=dict(environment),
                cwd=folder,
                dimensions=(rows, columns),
                timeout=None,
            )
        self.child.delaybeforesend = None
        self.ended = False

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- to the program

    def type(self, text: str) -> None:
        """Send text as a keyboard does."""
        data = text.encode()
        while data and not self.ended:
            try:
                data = data[os.write(self.child.child_fd, data) :]
            except OSError:
                self.ended = True

    def keys(self, *names: str) -> None:
        """Press keys by their names."""
        for name in names:
            self.type(KEYS[name])

    def paste(self, text: str) -> None:
        """Paste as terminals do: brackets around it, its newlines as carriage returns."""
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("\x03")

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    # -- from the program

    def pump(self, seconds: float = 0.05) -> None:
        """Let the screen take what the program writes; wait for it no longer than this."""
        if self.ended:
            return
        if not select.select([self.child.child_fd], [], [], seconds)[0]:
            return
        try:
            data = os.read(self.child.child_fd, 1 << 16)
        except OSError:  # Linux's way to say that nobody is at the other end
            data = b""
        self.ended = not data
        self.raw += data
        self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        """All lines, those that scrolled off included."""
        return [
            *self.screen.gone,
            *(self.screen.row(y) for y in range(self.screen.lines)),
        ]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    @property
    def line(self) -> str:
        """The line that the cursor is on."""
        return self.screen.row(min(self.screen.cursor.y, self.screen.lines - 1))

    @property
    def row_of_cursor(self) -> int:
        """The cursor's row, counted from the first line that ever was."""
        return len(self.screen.gone) + self.screen.cursor.y

    @property
    def toolbar(self) -> str:
        """The last row with anything on it."""
        return next((row for row in reversed(self.lines) if row), "")

    @property
    def prompts(self) -> int:
        """How many prompt lines there have been."""
        return self.raw.count(_PROMPT_BEGINS)

    @property
    def at_empty_prompt(self) -> bool:
        return self.line[len(PROMPT) :].startswith(PLACEHOLDERS) and self.screen.cursor.x == len(
            PROMPT
        )

    def wait_for(self, wanted: Wanted, timeout: float = 30) -> None:
        """Wait until a text or a pattern is on the screen or above it, or a predicate holds."""
        until = time.monotonic() + timeout
        while True:
            if isinstance(wanted, str):
                found: object = wanted in self.text
            elif isinstance(wanted, re.Pattern):
                found = wanted.search(self.text)
            else:
                found = wanted(self)
            if found:
                return
            if self.ended or time.monotonic() > until:
                what = "the program ended" if self.ended else f"{timeout:g} s passed"
                raise AssertionError(f"{what} without {wanted!r}\n{self}")
            self.pump()

    def wait_for_toolbar(self, text: str) -> None:
        """Wait for a text in the toolbar, which is drawn a moment after the prompt."""
        self.wait_for(
            lambda terminal: not terminal.toolbar.startswith(PROMPT) and text in terminal.toolbar
        )

    def wait_for_prompt(self, before: int = 0, timeout: float = 30) -> None:
        """Wait for an empty prompt line, later than the first `before`."""
        self.wait_for(
            lambda terminal: terminal.prompts > before and terminal.at_empty_prompt, timeout
        )

    def send(self, line: str) -> None:
        self.type(line)
        self.keys("enter")

    def do(self, line: str, timeout: float = 30) -> str:
        """Send a line from an empty prompt, wait for the next one, return what stands there from
        the first on.
        """
        before, first = self.prompts, self.row_of_cursor
        self.send(line)
        self.wait_for_prompt(before, timeout)
        return "\n".join(self.lines[first : self.row_of_cursor])

    def wait_for_end(self, timeout: float = 20) -> int:
        """Wait until the program has ended; return its exit code, or minus its signal."""
        self.wait_for(lambda terminal: terminal.ended, timeout)
        return self.exit_code(timeout)

    def exit_code(self, timeout: float = 20) -> int:
        until = time.monotonic() + timeout
        while self.child.isalive():
            assert time.monotonic() < until, f"the program did not end within {timeout:g} s\n{self}"
            time.sleep(0.02)
        return (
            self.child.exitstatus if self.child.signalstatus is None else -self.child.signalstatus
        )

    def vanish(self) -> None:
        """Go away as a closed window does."""
        # not os.close: when collected it would close the next terminal's number
        self.child.ptyproc.fileobj.close()
        self.child.child_fd = self.child.ptyproc.fd = -1
        self.child.closed = self.child.ptyproc.closed = True
        self.ended = True

    def close(self) -> None:
        """End the program if it still runs."""
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.exit_code()
        if not self.child.closed:
            self.vanish()

    def __repr__(self) -> str:
        rows = [f"|{self.screen.row(y)}" for y in range(self.screen.lines)]
        edge = "-" * self.screen.columns
        above = "\n".join(self.screen.gone[-20:])
        cursor = f"cursor at row {self.screen.cursor.y}, cell {self.screen.cursor.x}"
        return "\n".join([above, edge, *rows, edge, cursor, f"last bytes: {self.raw[-200:]!r}"])
