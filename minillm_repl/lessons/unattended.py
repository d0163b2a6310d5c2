"""A lesson from the shell, `--lesson N`: it goes on by itself, and may be exported."""

import argparse

from minillm_repl.lessons.course import find_lesson, make_lesson_runner
from minillm_repl.lessons.progress import Progress
from minillm_repl.lessons.run import run_unattended
from minillm_repl.render.export import check_overwritable
from minillm_repl.repl.shell import Shell
from minillm_repl.storage.paths import user_path


def run_lesson(shell: Shell, options: argparse.Namespace) -> None:
    """Go through a lesson, typing what is expected.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    if options.export:
        # now, not after the lesson
        check_overwritable(user_path(options.export), overwrite=options.overwrite)
    shell.session.workspace.start_loading()
    # Nobody has learnt anything: this progress is not kept.
    run_unattended(make_lesson_runner(shell, find_lesson(options.lesson), Progress()))
    if options.export:
        shell.run_line(
            f":export {options.export} lesson" + (" --overwrite" if options.overwrite else "")
        )
