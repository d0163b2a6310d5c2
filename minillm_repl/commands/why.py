"""`:why`."""

from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("why", ':why [TOKEN] [vs TOKEN] ["TEXT"]', aliases=("이유",), group="Look inside")
def why(shell: Shell, argument: str) -> None:
    """Show which parts of the model speak for the next token.

    This is direct logit attribution: the embedding, every head, every feed-forward and the biases
    write into the residual stream, and each bar is what one of them adds to the token's logit by
    itself. Together they are the logit; the last norm's scale is held at its value. What a part
    does through later parts is not in its bar. Without TOKEN it is the likeliest one. With `vs` it
    is the difference of two logits: why this one, not the other. A token is written as it is shown
    (␣ is a space), or as #ID; where a space before it may be meant or not, the likelier one is
    taken.
    """
    asked = Asked.of(argument)
    looked = subject(shell, asked.text)
    from minillm_repl.insight.attribution import why_view
    from minillm_repl.render.attribution import why_picture

    show(shell, why_view(looked, *asked.tokens(looked)), why_picture, asked.output)
