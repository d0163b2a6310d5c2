"""Prompt lines for a person whose stdout leads elsewhere: they are typed on the terminal as it
is.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from minillm_repl.repl.line_blocks import open_block, unwrap_block
from minillm_repl.repl.shell import CONTINUED, PROMPT
from minillm_repl.repl.signals import raised_at_once


def terminal_beside() -> TextIO | None:
    """Return where a person sees what is not stdout: stderr, else the terminal itself; None if
    there is none.
    """
    if sys.stderr.isatty():
        return sys.stderr
    with suppress(OSError):
        return open("/dev/tty", "w", encoding="utf-8")  # noqa: PTH123 - as long as the program runs
    return None


class PlainLine:
    """Reads lines that the terminal itself lets one edit."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal

    def read(self, once_drawn: Callable[[], None] | None = None) -> str:
        """Return the next line. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
        if once_drawn:
            once_drawn()
        text = self._line(PROMPT)
        while open_block(text):
            text += self._line(CONTINUED)
        return unwrap_block(text.rstrip("\r\n"))

    def stopped(self) -> bool:
        """Tell whether Ctrl-C was pressed right after the line: here it is always a signal."""
        return False

    def _line(self, lead: str) -> str:
        try:
            # from before the prompt is seen: whoever sees it may press Ctrl-C
            with raised_at_once():
                print(lead, end="", file=self._terminal, flush=True)
                line = sys.stdin.readline()
        except KeyboardInterrupt:
            print(file=self._terminal, flush=True)
            raise
        if not line:
            print(file=self._terminal, flush=True)
            raise EOFError
        return line
