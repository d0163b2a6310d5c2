"""The start-up file: lines that are run when the program starts, before the first prompt."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from minillm_repl.language import _
from minillm_repl.repl.loop import join_multiline, run_guarded
from minillm_repl.repl.reading import read_file
from minillm_repl.repl.shell import ExitRequested, Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import exists

_MAX_BYTES = 1 << 20  # of a start-up file: a larger one is another file


def read_startup(path: Path) -> list[str]:
    """Return the lines of a start-up file; empty lines, and those after #, are no lines.

    Raises UserError for a file that cannot be read, or is too long.
    """
    text = read_file(path, _MAX_BYTES).text
    lines = join_multiline(text.splitlines(keepends=True))
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_startup(shell: Shell, path: Path | None) -> None:
    """Run the lines of the start-up file, if there is one, as if they had been typed.

    What goes wrong is told, with the line, and the next line is run. Ctrl-C skips the rest.
    """
    if path is None or not exists(path):
        return
    # The lines are not typed, and not shown: what they do says enough.
    screen, shell.screen = shell.screen, replace(shell.screen, interactive=False)
    try:
        lines: list[str] = []
        if not run_guarded(shell, lambda: lines.extend(read_startup(path))) or not lines:
            return
        shell.session.workspace.start_loading()  # a line may ask for the model
        for line in lines:
            if not run_guarded(shell, partial(shell.execute, line)):
                shell.screen.note(
                    _(
                        "in the start-up file {path}: {line}",
                        path=safe_line(str(path)),
                        line=safe_line(line[:80]),
                    )
                )
            if shell.interrupted():
                return
    except ExitRequested:  # `:quit` ends the lines, not the program
        return
    finally:
        shell.screen = screen
