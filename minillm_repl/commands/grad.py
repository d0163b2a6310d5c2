"""`:grad`."""

from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command(
    "grad", ':grad [TOKEN] [vs TOKEN] ["TEXT"]', aliases=("saliency", "기울기"), group="Look inside"
)
def grad(shell: Shell, argument: str) -> None:
    """Show which tokens of the text the next one depends on.

    The gradient of TOKEN's logit with respect to the vector of each input token, as it enters the
    first layer (with its position's, where that is learned). levels: its L2 norm, how sensitive the
    choice is to this token at all. bars: gradient · vector: to first order, what the logit would
    lose if the vector were zero. Without TOKEN it is the likeliest one; with `vs` it is the
    difference of two logits. A token is written as in :why. A gradient tells of small changes only;
    :ablate and :patch make large ones.
    """
    asked = Asked.of(argument)
    looked = subject(shell, asked.text)
    from minillm_repl.insight.gradient import grad_view
    from minillm_repl.render.thinking import grad_picture

    show(shell, grad_view(looked, *asked.tokens(looked)), grad_picture, asked.output)
