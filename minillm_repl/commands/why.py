"""`:why`."""

from minillm_repl.repl.inspecting import Arguments, inspect_text, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("why", ':why [TOKEN] [vs TOKEN] ["TEXT"]', aliases=("이유",), group="Look inside")
def why(shell: Shell, argument: str) -> None:
    """Show what each head and MLP adds to the next token's logit.

    This is direct logit attribution. The embedding, every head, every MLP and the biases write into
    the residual stream. Each bar is what one of them adds directly to the token's logit. The bars
    sum to the logit. The scale of the final norm is held at its value. Indirect effects, through
    later components, are not in the bar.

    Without TOKEN, the target is the most likely token. With `vs`, it is the difference of two
    logits: why this token and not the other.

    Write a token as it is shown (␣ is a space), or as #ID. If it is not clear whether a space
    belongs to the token, the command takes the more likely one.
    """
    asked = Arguments.parse(argument)
    looked = inspect_text(shell, asked.text)
    from minillm_repl.insight.attribution import why_view
    from minillm_repl.render.attribution import why_picture

    show_view(shell, why_view(looked, *asked.parse_token_pair(looked)), why_picture, asked.output)
