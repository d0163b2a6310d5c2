"""`:tokens`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, show
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("tokens", ":tokens TEXT", aliases=("토큰",), verbatim=True, group="What it expects")
def tokens(shell: Shell, argument: str) -> None:
    """Show the tokens of a text, with ids and bytes.

    TEXT is taken as it is, quotes and spaces included. What the model's tokenizer puts before every
    text, a start token, is shown too. length, vector: what the embedding makes of each token, the
    L2 norm of its vector and the first numbers of it.
    """
    asked = Asked.verbatim(argument)
    if not asked.text:
        raise UserError(_(":tokens needs a text"))
    model = shell.model()
    from minillm_repl.insight.tokens import tokens_view
    from minillm_repl.render.texts import tokens_picture

    ids = shell.encode(model, asked.text)
    view = tokens_view(model.checkpoint.tokenizer, model.embedding, ids, asked.text)
    show(shell, view, tokens_picture, asked.output)
