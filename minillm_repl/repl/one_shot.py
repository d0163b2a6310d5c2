"""One prompt from the command line, and its completion."""

import os
import select
from contextlib import suppress
from typing import TextIO

from minillm_repl.environment import Environment, read_text
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS
from minillm_repl.repl.shell import Shell

STDIN = "-"  # in place of a prompt
# seconds without a word from a pipe, after which the user is told what is waited for
_STDIN_WAIT = 2.0


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
