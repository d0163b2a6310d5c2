"""`:continue`, `:regen`, `:undo` and `:clear`: what one does with the text so far."""

from rich.text import Text

from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe
from minillm_repl.tokenizer.base import decode


@command("continue", ":continue [TEXT]", aliases=("c",), verbatim=True)
def continue_(shell: Shell, argument: str) -> None:
    """Write on from where the text stopped, or from TEXT after it."""
    model = shell.model()
    fresh = not shell.session.ids  # some models can begin from nothing: from their start token
    more = shell.encode(model, argument, start=fresh) if argument or fresh else []
    shell.session.go_on(more, argument)
    shell.respond(model)


@command("regen", aliases=("r", "retry"))
def regen(shell: Shell, _argument: str) -> None:
    """Write another completion of the last prompt."""
    model = shell.model()
    turn = shell.session.undo()
    shell.session.begin(list(turn.given), asked=turn.asked, begun=turn.begun, another=True)
    shell.respond(model)


@command("undo", aliases=("u",))
def undo(shell: Shell, _argument: str) -> None:
    """Take the last prompt and its completion back."""
    model = shell.model()
    shell.session.undo()
    said = shell.session.said
    text = said[-1].content if said else decode(model.checkpoint.tokenizer, shell.session.ids)
    shell.screen.out.print(Text(safe(text) or "(no text)"), soft_wrap=True)


@command("clear")
def clear(shell: Shell, _argument: str) -> None:
    """Forget the text so far, and start afresh."""
    shell.session.clear()
    shell.screen.note("the text so far is forgotten")
