"""Prompt lines for a person whose stdout leads elsewhere: typed on the terminal as it is."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from minillm_repl.repl.line_blocks import is_multiline_open, unwrap_multiline
from minillm_repl.repl.shell import CONTINUATION_PROMPT, PROMPT
from minillm_repl.repl.signals import default_interrupt


def open_terminal() -> TextIO | None:
    """Return where a person sees what is not stdout: stderr, else the terminal itself; None if
    there is none.
    """
    if sys.stderr.isatty():
        return sys.stderr
    with suppress(OSError):
        return open("/dev/tty", "w", encoding="utf-8")  # noqa: PTH123 - as long as the program runs
    return None


class PlainLineReader:
    """Reads lines that the terminal itself lets one edit."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal

    def read(self, on_ready: Callable[[], None] | None = None) -> str:
        """Return the next line. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
        if on_ready:
            on_ready()
        text = self._read_line(PROMPT)
        while is_multiline_open(text):
            text += self._read_line(CONTINUATION_PROMPT)
        return unwrap_multiline(text.rstrip("\r\n"))

    def was_interrupted(self) -> bool:
        """Tell whether Ctrl-C was pressed right after the line: here it is always a signal."""
        return False

    def _read_line(self, lead: str) -> str:
        try:
            # from before the prompt is seen: whoever sees it may press Ctrl-C
            with default_interrupt():
                print(lead, end="", file=self._terminal, flush=True)
                line = sys.stdin.readline()
        except KeyboardInterrupt:
            print(file=self._terminal, flush=True)
            raise
        if not line:
            print(file=self._terminal, flush=True)
            raise EOFError
        return line
