"""`:continue`, `:regen`, `:undo` and `:clear`: what one does with the text so far."""

from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command(
    "continue",
    arguments=(TextArgument(verbatim=True),),
    aliases=("c", "계속"),
    group="Talk",
    example=":continue 하늘이",
)
def continue_(shell: Shell, asked: Arguments) -> None:
    """Continue the text, or append TEXT and continue."""
    model = shell.require_model()
    fresh = (
        not shell.session.conversation.ids
    )  # some models can begin from nothing: from their start token
    more = shell.encode(model, asked.text, start=fresh) if asked.text or fresh else []
    shell.session.conversation.continue_text(more, asked.text, shell.session.settings)
    shell.respond(model)


@command("regen", aliases=("r", "retry", "다시"), group="Talk")
def regen(shell: Shell, _asked: Arguments) -> None:
    """Sample another completion of the last prompt.

    After `:continue` it retries the continued part, after `:branch take N` the branch. With a fixed
    seed, each try uses the next seed. `:undo` removes the try and its prompt.
    """
    model = shell.require_model()
    shell.session.conversation.retry_turn(shell.session.settings)
    shell.respond(model)
    if shell.session.settings.temp == 0:
        shell.screen.note(_("at temp 0 every try gives the same text"))


@command("undo", aliases=("u", "되돌리기"), group="Talk")
def undo(shell: Shell, _asked: Arguments) -> None:
    """Remove the last prompt and its completion."""
    model = shell.require_model()
    shell.session.conversation.undo()
    shell.show_text(model)


@command("clear", aliases=("지우기",), group="Talk")
def clear(shell: Shell, _asked: Arguments) -> None:
    """Clear the context."""
    shell.session.conversation.clear()
    shell.screen.note(_("context cleared"))
