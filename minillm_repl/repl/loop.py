"""Where lines come from, and doing what they say until the user leaves: a terminal, a pipe, or the
one prompt of the command line.
"""

import os
import select
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from minillm_repl.environment import Environment, OutputLost, leave_missing_folder, read_text
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.job_control import typeahead
from minillm_repl.repl.lines import LineReader, PlainLineReader, join_multiline
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS
from minillm_repl.repl.shell import ExitRequested, Shell
from minillm_repl.repl.signals import exit_on_termination, idle_interrupts, interruptible

STDIN = "-"  # in place of a prompt
# seconds without a word from a pipe, after which the user is told what is waited for
_STDIN_WAIT = 2.0


def run_interactive(shell: Shell, history: Path | None) -> int:
    """Talk to a person at a terminal; return the exit code."""
    from minillm_repl.repl.completion import open_history
    from minillm_repl.repl.keyboard import keyboard
    from minillm_repl.repl.prompt import PromptReader

    screen = shell.screen
    colors = not screen.out.no_color
    with (
        exit_on_termination(),
        keyboard() as bracketed_paste,
        typeahead(bracketed_paste.disable, bracketed_paste.resume) as set_typeahead,
    ):
        prompt = PromptReader(
            shell, open_history(history), colors, lambda: screen.note(_("Ctrl-D or :quit quits"))
        )
        return _run_loop(shell, prompt, prompt.redraw, set_typeahead)


def run_plain(shell: Shell, reader: PlainLineReader) -> int:
    """Talk to a person at a terminal whose stdout leads elsewhere; return the exit code."""
    return _run_loop(shell, reader, lambda: None, lambda: None)


def _run_loop(
    shell: Shell, reader: LineReader, redraw: Callable[[], None], set_typeahead: Callable[[], None]
) -> int:
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
    if model.is_chatting(session.settings.chat):
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

        top = session.settings.verbose or DEFAULT_VERBOSE_ROWS
        finished = print_json(
            session.conversation.generate(model, session.settings, shell.interrupted, top),
            shell.screen.out.file,
        )
        shell.note_unseen(model)
    else:
        finished = shell.respond(model, echo=echo)
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
        os.read(stdin.fileno(), 0)
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
    moved = leave_missing_folder()
    if moved:
        shell.screen.warn(moved)
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
    # The outermost boundary: what was trained or written must survive a bug.
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
