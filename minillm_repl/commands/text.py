"""`:continue`, `:regen`, `:undo` and `:clear`: what one does with the text so far."""

from minillm_repl.language import _
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("continue", ":continue [TEXT]", aliases=("c", "계속"), verbatim=True, group="Talk")
def continue_(shell: Shell, argument: str) -> None:
    """Write on from where the text stopped, or from TEXT after it."""
    model = shell.model()
    fresh = not shell.session.ids  # some models can begin from nothing: from their start token
    more = shell.encode(model, argument, start=fresh) if argument or fresh else []
    shell.session.go_on(more, argument)
    shell.respond(model)


@command("regen", aliases=("r", "retry", "다시"), group="Talk")
def regen(shell: Shell, _argument: str) -> None:
    """Write another completion of the last prompt.

    After `:continue` it is another continuation, after `:branch take N` another way. With a seed
    that is set, each try takes the next one. `:undo` takes the try back, and with it the prompt.
    """
    model = shell.model()
    shell.session.begin_again()
    shell.respond(model)
    if shell.session.settings.temp == 0:
        shell.screen.note(_("at temp 0 another try is the same"))


@command("undo", aliases=("u", "되돌리기"), group="Talk")
def undo(shell: Shell, _argument: str) -> None:
    """Take the last prompt and its completion back."""
    model = shell.model()
    shell.session.undo()
    shell.show_text(model)


@command("clear", aliases=("지우기",), group="Talk")
def clear(shell: Shell, _argument: str) -> None:
    """Forget the text so far, and start afresh."""
    shell.session.clear()
    shell.screen.note(_("the text so far is forgotten"))
