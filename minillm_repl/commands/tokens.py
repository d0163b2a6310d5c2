"""`:tokens`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Arguments, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("tokens", ":tokens TEXT", aliases=("토큰",), verbatim=True, group="Predictions")
def tokens(shell: Shell, argument: str) -> None:
    """Show the tokens of a text, with ids and bytes.

    The command takes TEXT exactly as typed, with quotes and spaces. If the tokenizer puts a start
    token before every text, the view shows it too.

    norm and vector: the L2 norm of the token's embedding, and its first values.
    """
    asked = Arguments.parse_verbatim(argument)
    if not asked.text:
        raise UserError(_(":tokens needs a text"))
    model = shell.require_model()
    from minillm_repl.insight.tokens import tokens_view
    from minillm_repl.render.texts import tokens_picture

    ids = shell.encode(model, asked.text)
    view = tokens_view(model.checkpoint.tokenizer, model.embedding, ids, asked.text)
    show_view(shell, view, tokens_picture, asked.output)
