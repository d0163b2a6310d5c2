'''Lines that are typed or piped in: prompts, texts of several lines between """ and """, and how a
terminal is read whose stdout leads elsewhere.
'''

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol, TextIO

from minillm_repl.environment import Environment
from minillm_repl.repl.signals import default_interrupt

PROMPT, CONTINUATION_PROMPT = ">>> ", "... "

TRIPLE_QUOTE = '"""'
_MULTILINE_START = re.compile(rf'\s*(?P<command>[:/][^"\n]*\s)?{TRIPLE_QUOTE}')


def is_multiline_open(text: str) -> bool:
    '''Tell whether a text has opened a """ block, alone or after a command, and not closed it.'''
    return bool(_MULTILINE_START.match(text)) and text.count(TRIPLE_QUOTE) % 2 == 1


def unwrap_multiline(text: str) -> str:
    '''Return what stands in a """ block, after the command before it; any other text as it is.'''
    opened, end = _MULTILINE_START.match(text), text.rstrip()
    if opened and len(end) >= opened.end() + len(TRIPLE_QUOTE) and end.endswith(TRIPLE_QUOTE):
        return (opened["command"] or "") + end[opened.end() : -len(TRIPLE_QUOTE)].strip("\n")
    return text


def join_multiline(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines without their ends, a block of several as one."""
    text = ""
    for line in lines:
        text += line
        if not is_multiline_open(text):
            yield unwrap_multiline(text.rstrip("\r\n"))
            text = ""
    if text:
        yield text


class LineHandler(Protocol):
    """What gets each line that is typed while it goes on: a lesson."""

    @property
    def position_label(self) -> str:
        """Where one is in it, in a few words."""

    @property
    def hint(self) -> str:
        """What it waits for."""

    def handle_line(self, line: str) -> None:
        """Do what a line says. Raises UserError."""


class LineReader(Protocol):
    """What a person types their lines into."""

    def read(self, on_ready: Callable[[], None] | None = None) -> str:
        """Return the next line. Raises EOFError and KeyboardInterrupt."""

    def was_interrupted(self) -> bool:
        """Tell whether Ctrl-C was pressed right after it."""


def open_terminal(environment: Environment) -> TextIO | None:
    """Return where a person sees what is not stdout: stderr, else the terminal itself; None if
    there is none.
    """
    if environment.stderr.isatty():
        return environment.stderr
    with suppress(OSError):
        return open("/dev/tty", "w", encoding="utf-8")  # noqa: PTH123 - as long as the program runs
    return None


class PlainLineReader:
    """Reads lines that the terminal itself lets one edit."""

    def __init__(self, keyboard: TextIO, terminal: TextIO) -> None:
        self._keyboard, self._terminal = keyboard, terminal

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

    def _read_line(self, prompt: str) -> str:
        try:
            # from before the prompt is seen: a user who sees it may press Ctrl-C
            with default_interrupt():
                print(prompt, end="", file=self._terminal, flush=True)
                line = self._keyboard.readline()
        except KeyboardInterrupt:
            print(file=self._terminal, flush=True)
            raise
        if not line:
            print(file=self._terminal, flush=True)
            raise EOFError
        return line
