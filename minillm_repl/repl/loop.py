"""Where lines come from, and doing what they say until the user leaves: a terminal, a pipe, or the
one prompt of the command line.
"""

import os
import re
import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Protocol, TextIO

from minillm_repl.environment import Environment, OutputLost, read_text
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.answering import note_unseen, respond
from minillm_repl.repl.care import help_for, tell_help
from minillm_repl.repl.conversation import is_chatting
from minillm_repl.repl.settings import verbose_rows
from minillm_repl.repl.shell import PROMPT, ExitRequested, Shell
from minillm_repl.repl.signals import (
    default_interrupt,
    idle_interrupts,
    interruptible,
)

CONTINUATION_PROMPT = "... "

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
    if text:  # a block that the end of the file closes: as it was typed
        yield text


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


STDIN = "-"  # in place of a prompt
# seconds without a word from a pipe, after which the user is told what is waited for
_STDIN_WAIT = 2.0


def run_plain(shell: Shell, reader: PlainLineReader) -> int:
    """Talk to a person at a terminal whose stdout leads elsewhere; return the exit code."""
    return run_loop(shell, reader, lambda: None, lambda: None)


def run_loop(
    shell: Shell, reader: LineReader, redraw: Callable[[], None], set_typeahead: Callable[[], None]
) -> int:
    """Do what each line says until the user leaves; return the exit code.

    `redraw` draws the prompt line again; `set_typeahead` sets the mode of the terminal once more.
    """
    session, screen = shell.session, shell.screen
    # The model is opened once the prompt can take keys: nobody waits for what they do not need yet.
    start_loading: Callable[[], None] | None = partial(session.workspace.start_loading, redraw)
    with idle_interrupts() as presses:
        while True:
            try:
                presses.consume()
                line = reader.read(start_loading)
                set_typeahead()  # prompt_toolkit has put back the mode that it found
                is_interrupted = reader.was_interrupted() or presses.consume()
                if start_loading:
                    start_loading()  # a dumb terminal never tells that it has drawn
                    start_loading = None
                run_guarded(shell, partial(shell.execute, line), is_interrupted=is_interrupted)
            except KeyboardInterrupt:  # in the moment in which prompt_toolkit hands the signal back
                continue
            except (EOFError, ExitRequested):
                try:
                    session.confirm_discard("leave")
                except UserError as unsaved:
                    screen.warn(str(unsaved))
                else:
                    return 0


def run_script(shell: Shell, lines: Iterable[str]) -> int:
    """Run lines as if they had been typed; return 1 if any of them failed, else 0.

    Raises KeyboardInterrupt.
    """
    failed = False
    try:
        for line in join_multiline(lines):
            failed |= not run_guarded(shell, partial(shell.execute, line))
            if shell.interrupted():  # Ctrl-C is for the script, not for one line of it
                raise KeyboardInterrupt
    except ExitRequested:
        pass
    return int(failed)


def run_one_shot(shell: Shell, text: str, *, echo: bool, json: bool) -> None:
    """Complete a prompt on stdout; figures go to stderr.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    session = shell.session
    model = shell.require_model()
    crisis_help = help_for(shell, text, model)
    if crisis_help is not None:
        tell_help(shell, crisis_help, json=json)
        return
    if is_chatting(model, session.settings.chat):
        if not text.strip():
            raise UserError(_("the prompt is empty"))
        shell.start_chat_turn(model, text)
    else:
        ids = shell.encode(model, text)
        if not ids:  # some models can begin from nothing: from their start token
            raise UserError(_("the prompt is empty"))
        session.conversation.start_turn(ids, session.settings)
    if json:
        from minillm_repl.render.json_lines import print_json

        top = verbose_rows(session.settings)
        finished = print_json(
            session.conversation.generate(model, session.settings, shell.interrupted, top),
            shell.screen.out.file,
        )
        note_unseen(shell, model)
    else:
        finished = respond(shell, model, echo=echo)
    if finished.reason == "interrupt":
        raise KeyboardInterrupt


def prompt_text(shell: Shell, environment: Environment, prompt: str) -> str:
    """Return the text to complete: what is piped in, then, on its own line, what `-p` says.

    Raises UserError if what is piped in is no text.
    """
    if prompt == STDIN:
        return _read_stdin(shell, environment.stdin)
    if environment.stdin.isatty() or not _is_readable(environment.stdin):
        return prompt
    before = _read_stdin(shell, environment.stdin)
    return f"{before}\n{prompt}" if before.strip() else prompt


def _read_stdin(shell: Shell, stdin: TextIO) -> str:
    if stdin.isatty():
        shell.screen.note(_("type the prompt; Ctrl-D on an empty line ends it"))
    elif (
        os.name == "posix"
        and _is_readable(stdin)
        and not select.select([stdin], [], [], _STDIN_WAIT)[0]
    ):
        shell.screen.note(
            _("waiting for the end of stdin, which is part of the prompt; `</dev/null` skips it")
        )
    return read_text(stdin.buffer).removesuffix("\n")


def _is_readable(stdin: TextIO) -> bool:
    """Tell whether stdin can be read at all: it may be closed, or a folder."""
    with suppress(OSError):
        os.read(stdin.fileno(), 0)  # reads nothing, and fails as a read would
        return True
    return False


def run_guarded(
    shell: Shell, action: Callable[[], object], *, is_interrupted: bool = False
) -> bool:
    """Do something; return whether it worked. What goes wrong is told, and the session goes on.

    With `is_interrupted`, Ctrl-C was pressed before it could begin. Raises ExitRequested;
    SystemExit for a third Ctrl-C; KeyboardInterrupt where nobody types; OutputLost and
    BrokenPipeError when stdout takes no more.
    """
    session = shell.session
    try:
        with interruptible(
            is_interrupted=is_interrupted,
            has_unsaved=lambda: session.workspace.unsaved,
            is_training=lambda: session.workspace.is_training,
        ) as shell.interrupted:
            action()
    except UserError as error:
        shell.screen.fail(str(error))
        return False
    except KeyboardInterrupt:  # the second Ctrl-C: out of whatever it was
        if not shell.screen.interactive:
            raise
        shell.screen.warn(
            _(
                "stopped; the session is still open. The trained weights are not saved: "
                "`:save FILE` saves them, Ctrl-D quits"
            )
            if shell.interrupted.wants_exit and session.workspace.unsaved
            else _("stopped")
        )
        return False
    except (ExitRequested, BrokenPipeError, OutputLost):
        raise
    # Every error: this is the outermost boundary, and what was trained must survive a bug.
    except Exception as bug:  # noqa: BLE001
        shell.screen.fail(
            _("not enough memory: use a smaller model, batch or context")
            if _is_out_of_memory(bug)
            else _(
                "this is a bug in minillm-repl, not your mistake: {bug}",
                bug=f"{type(bug).__name__}: {bug}",
            )
        )
        return False
    return True


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out: torch has its own errors for it, on the CPU only their text."""
    message = str(error)
    return (
        isinstance(error, MemoryError)
        or "out of memory" in message
        or "can't allocate memory" in message
    )
