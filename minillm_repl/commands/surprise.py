"""`:surprise`."""

from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "surprise",
    arguments=(TextArgument(free=True),),
    json=True,
    aliases=("surprisal", "perplexity", "놀람"),
    group="Predictions",
)
def surprise(shell: Shell, asked: Arguments) -> None:
    """Show the surprisal of each token.

    The surprisal of a token is −log2 of the probability that the model gave it, in bits.

    mean: over the tokens. perplexity: e to the power of the mean in nats. bits per byte: all bits
    divided by all bytes of these tokens; it excludes special tokens and a space that the tokenizer
    put before the text. Bits per byte compare across models. The first token has no prefix and is
    not counted.

    `:surprise` alone shows the text that was just written; with TEXT, it shows that text.
    """
    looked, turns = inspect_text(shell, asked.text), shell.session.conversation.turns
    from minillm_repl.insight.surprise import surprise_view
    from minillm_repl.render.texts import surprise_picture

    given = (
        0
        if asked.text
        or not turns
        or len(turns[-1].prompt_ids) == len(shell.session.conversation.ids)
        else len(turns[-1].prompt_ids)
    )
    show_view(shell, surprise_view(looked, given), surprise_picture, asked.output)
