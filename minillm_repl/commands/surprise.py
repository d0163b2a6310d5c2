"""`:surprise`."""

from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command(
    "surprise",
    ":surprise [TEXT]",
    aliases=("surprisal", "perplexity", "놀람"),
    group="What it expects",
)
def surprise(shell: Shell, argument: str) -> None:
    """Show how unexpected each token was to the model.

    The surprisal of a token is −log2 of the probability that the model gave it after all that is
    before it, in bits. mean: over the tokens; perplexity: e to the mean in nats; bits per byte: all
    bits over all bytes of these tokens, special ones left out, and a space that the tokenizer has
    put before the text; it can be compared between models. The first token has nothing before it,
    and counts not.
    :surprise alone is about what was just written; with TEXT about that text.
    """
    asked = Asked.of(argument)
    text = asked.whole
    looked, turns = subject(shell, text), shell.session.turns
    from minillm_repl.insight.surprise import surprise_view
    from minillm_repl.render.texts import surprise_picture

    given = (
        0
        if text or not turns or len(turns[-1].given) == len(shell.session.ids)
        else len(turns[-1].given)
    )
    show(shell, surprise_view(looked, given), surprise_picture, asked.output)
