"""`:tokens`."""

from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import show_view


@command(
    "tokens",
    arguments=(TextArgument(verbatim=True, required=True),),
    json=True,
    aliases=("토큰",),
    group="Predictions",
)
def tokens(shell: Shell, asked: Arguments) -> None:
    """Show the tokens of a text, with ids and bytes.

    The command takes TEXT exactly as typed, with quotes and spaces. If the tokenizer puts a start
    token before every text, the view shows it too.

    norm and vector: the L2 norm of the token's embedding, and its first values.
    """
    model = shell.require_model()
    from minillm_repl.insight.tokens import tokens_view
    from minillm_repl.render.texts import tokens_picture

    ids = shell.encode(model, asked.text)
    view = tokens_view(model.checkpoint.tokenizer, model.embedding, ids, asked.text)
    show_view(shell, view, tokens_picture, asked.output)
