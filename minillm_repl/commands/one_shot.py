"""What the command line asks for once: a prompt (`-p`), or a measurement (`--eval`)."""

import argparse
from pathlib import Path

from minillm_repl.environment import Environment
from minillm_repl.repl.loop import prompt_text, run_one_shot
from minillm_repl.repl.session_start import asks_for_session, begin_session
from minillm_repl.repl.shell import Shell
from minillm_repl.storage.paths import exists, user_path


def complete_once(
    shell: Shell, environment: Environment, options: argparse.Namespace, session: Path | None
) -> None:
    """Complete the prompt of the command line. Raises UserError and KeyboardInterrupt."""
    shell.session.workspace.start_loading()  # while the rest of the prompt is read
    if asks_for_session(options):
        begin_session(shell, session, options, is_quiet=True)
    text = prompt_text(shell, environment, options.prompt)
    try:
        run_one_shot(shell, text, echo=options.echo, json=options.json)
    finally:
        if asks_for_session(options):
            shell.recorder.after_line(text)


def evaluate_once(shell: Shell, options: argparse.Namespace) -> None:
    """Measure the model on a file, and show what `:eval` shows. Raises UserError."""
    from minillm_repl.render.json_lines import print_event
    from minillm_repl.views.evaluate import eval_command, run_command

    typed = options.eval
    if exists(user_path(typed)):
        typed = f'"{typed}"'  # a file, whatever is in its name
    shell.session.workspace.start_loading()
    if not options.json:
        shell.run_line(f":eval {typed}")
        return
    stream = shell.screen.out.file
    view = run_command(
        shell, eval_command.parse(typed), lambda event: print_event(event, stream)
    ).to_dict()
    del view["view"], view["items"]  # each item was an event
    print_event({"event": "finished", **view}, stream)
