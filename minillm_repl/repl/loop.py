"""The loop: read a line, do what it says, until the user leaves. At a terminal, or from a pipe."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.environment import be_somewhere
from minillm_repl.repl.job_control import typing_ahead
from minillm_repl.repl.line_blocks import joined
from minillm_repl.repl.plain_prompt import PlainLine
from minillm_repl.repl.shell import Leave, Shell
from minillm_repl.repl.signals import between, interruptible, leaving_when_told
from minillm_repl.repl.standard_streams import OutputLost


class Line(Protocol):
    """What a person types their lines into."""

    def read(self, once_drawn: Callable[[], None] | None = None) -> str:
        """Return the next line. Raises EOFError and KeyboardInterrupt."""

    def stopped(self) -> bool:
        """Tell whether Ctrl-C was pressed right after it."""


def run_interactive(shell: Shell, history: Path | None) -> int:
    """Talk to a person at a terminal; return the exit code."""
    from minillm_repl.repl.keyboard import keyboard
    from minillm_repl.repl.prompt import PromptLine, open_history

    screen = shell.screen
    colors = not screen.out.no_color
    with (
        leaving_when_told(),
        keyboard() as pasting,
        typing_ahead(pasting.stop, pasting.again) as at_work,
    ):
        prompt = PromptLine(
            shell, open_history(history), colors, lambda: screen.note(_("Ctrl-D or :quit leaves"))
        )
        return _talk(shell, prompt, prompt.redraw, at_work)


def run_beside(shell: Shell, terminal: TextIO) -> int:
    """Talk to a person at a terminal whose stdout leads elsewhere; return the exit code."""
    return _talk(shell, PlainLine(terminal), lambda: None, lambda: None)


def _talk(
    shell: Shell, prompt: Line, redraw: Callable[[], None], at_work: Callable[[], None]
) -> int:
    session, screen = shell.session, shell.screen
    # The model is opened once the prompt can take keys: nobody waits for what they do not need yet.
    begin: Callable[[], None] | None = partial(session.start_loading, redraw)
    with between() as presses:
        while True:
            try:
                presses.taken()
                line = prompt.read(begin)
                at_work()
                stopped = prompt.stopped() or presses.taken()
                if begin:
                    begin()  # a dumb terminal never tells that it has drawn
                    begin = None
                attempt(shell, partial(shell.execute, line), stopped=stopped)
            except KeyboardInterrupt:  # in the moment in which prompt_toolkit hands the signal back
                continue
            except (EOFError, Leave):
                try:
                    session.agree_to_discard("leave")
                except UserError as unsaved:
                    screen.warn(str(unsaved))
                else:
                    return 0


def run_script(shell: Shell, lines: Iterable[str]) -> int:
    """Run lines as if they had been typed; return 1 if any of them failed.

    Raises KeyboardInterrupt.
    """
    failed = False
    try:
        for line in joined(lines):
            failed |= not attempt(shell, partial(shell.execute, line))
            if shell.interrupted():  # whoever presses Ctrl-C means the script, not one line of it
                raise KeyboardInterrupt
    except Leave:
        pass
    return int(failed)


def attempt(shell: Shell, action: Callable[[], object], *, stopped: bool = False) -> bool:
    """Do something, and tell whether it worked; with `stopped` Ctrl-C was pressed before it could
    begin.

    Raises Leave, SystemExit for a third Ctrl-C, and KeyboardInterrupt where nobody is typing.
    """
    be_somewhere(shell.screen)
    session = shell.session
    try:
        with interruptible(
            already=stopped, unsaved=lambda: session.unsaved, learning=lambda: session.learning
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
                "stopped, but not left: the trained weights are not saved: `:save FILE` keeps "
                "them, Ctrl-D leaves"
            )
            if shell.interrupted.to_leave and session.unsaved
            else _("stopped")
        )
        return False
    except (Leave, BrokenPipeError, OutputLost):
        raise
    except Exception as bug:  # noqa: BLE001 - the outermost boundary: what was trained or written must survive a bug
        shell.screen.fail(
            _("there is not enough memory for this: a smaller model, batch or context needs less")
            if _no_memory(bug)
            else _(
                "this is a bug in minillm-repl, not your doing: {bug}",
                bug=f"{type(bug).__name__}: {bug}",
            )
        )
        return False
    return True


def _no_memory(error: Exception) -> bool:
    """Tell whether memory ran out: torch says so in errors of its own, on the CPU only by their
    text.
    """
    said = str(error)
    return (
        isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said
    )
