"""One prompt from the command line, and its completion."""

import os
import select
import sys
from contextlib import suppress

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.standard_streams import read_text

STDIN = "-"  # in place of a prompt
# seconds without a word from a pipe, after which the user is told what is waited for
_STDIN_WAIT = 2.0


def run_one_shot(shell: Shell, prompt: str, *, echo: bool, json: bool) -> None:
    """Complete a prompt on stdout; figures go to stderr.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    session = shell.session
    session.workspace.start_loading()
    text = prompt_text(shell, prompt)
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


def prompt_text(shell: Shell, prompt: str) -> str:
    """Return the text to complete: what is piped in, then, on its own line, what `-p` says.

    Raises UserError if what is piped in is no text.
    """
    if prompt == STDIN:
        return _read_stdin(shell)
    if sys.stdin.isatty() or not _is_stdin_readable():
        return prompt
    before = _read_stdin(shell)
    return f"{before}\n{prompt}" if before.strip() else prompt


def _read_stdin(shell: Shell) -> str:
    if sys.stdin.isatty():
        shell.screen.note(_("type the prompt; Ctrl-D on an empty line ends it"))
    elif (
        os.name == "posix"
        and _is_stdin_readable()
        and not select.select([sys.stdin], [], [], _STDIN_WAIT)[0]
    ):
        shell.screen.note(
            _("waiting for the end of stdin, which is part of the prompt; `</dev/null` skips it")
        )
    return read_text(sys.stdin.buffer).removesuffix("\n")


def _is_stdin_readable() -> bool:
    """Tell whether stdin can be read at all: it may be closed, or a folder."""
    with suppress(OSError):
        os.read(sys.stdin.fileno(), 0)
        return True
    return False
