"""One prompt from the command line, and its completion."""

import os
import select
import sys
from contextlib import suppress

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.settings import VERBOSE_ROWS
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.standard_streams import whole_text

STDIN = "-"  # in place of a prompt
# seconds without a word from a pipe, after which the user is told what is waited for
_PATIENCE = 2.0


def one_shot(shell: Shell, prompt: str, *, echo: bool, json: bool) -> None:
    """Complete a prompt on stdout; figures go to stderr.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    session = shell.session
    session.start_loading()
    text = prompt_text(shell, prompt)
    model = shell.model()
    if session.chatting(model):
        if not text.strip():
            raise UserError(_("the prompt is empty"))
        shell.ask(model, text)
    else:
        ids = shell.encode(model, text)
        if not ids:  # some models can begin from nothing: from their start token
            raise UserError(_("the prompt is empty"))
        session.begin(ids)
    if json:
        from minillm_repl.render.json_lines import print_json

        top = session.settings.verbose or VERBOSE_ROWS
        finished = print_json(
            session.generate(model, shell.interrupted, top), shell.screen.out.file
        )
        shell.tell_unseen(model)
    else:
        finished = shell.respond(model, echo=echo)
    if finished.reason == "interrupt":
        raise KeyboardInterrupt


def prompt_text(shell: Shell, prompt: str) -> str:
    """Return the text to complete: what is piped in, and after it, on a line of its own, what `-p`
    says.

    Raises UserError if what is piped in is no text.
    """
    if prompt == STDIN:
        return _piped(shell)
    if sys.stdin.isatty() or not _readable():
        return prompt
    before = _piped(shell)
    return f"{before}\n{prompt}" if before.strip() else prompt


def _piped(shell: Shell) -> str:
    if sys.stdin.isatty():
        shell.screen.note(_("type the prompt; Ctrl-D on an empty line ends it"))
    elif (
        os.name == "posix" and _readable() and not select.select([sys.stdin], [], [], _PATIENCE)[0]
    ):
        shell.screen.note(
            _(
                "waiting for the end of stdin, which is part of the prompt; `</dev/null` leaves it "
                "out"
            )
        )
    return whole_text(sys.stdin.buffer).removesuffix("\n")


def _readable() -> bool:
    """Tell whether stdin can be read at all: it may be closed, or a folder."""
    with suppress(OSError):
        os.read(sys.stdin.fileno(), 0)
        return True
    return False
