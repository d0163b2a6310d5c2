"""`:tokens`."""

from minillm_repl.errors import UserError
from minillm_repl.render.tables import TokenView, tokens_line, tokens_table
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("tokens", ":tokens TEXT", verbatim=True)
def tokens(shell: Shell, argument: str) -> None:
    """Show the tokens of a text, with ids and bytes.

    What the model's tokenizer puts before every text, a start token, is shown too.
    """
    if not argument:
        raise UserError(":tokens needs a text")
    model = shell.model()
    view = TokenView.of(model.checkpoint.tokenizer, shell.encode(model, argument), argument)
    shell.screen.out.print(tokens_table(view))
    shell.screen.out.print(tokens_line(view))
