"""`:residual`."""

from minillm_repl.repl.argument_parsing import check_no_place
from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("residual", ":residual [TEXT]", aliases=("잔차",), group="Look inside")
def residual(shell: Shell, argument: str) -> None:
    """Show how the residual stream grows, layer by layer.

    The stream is the vector that runs through all layers at the last token; each attention and
    feed-forward adds to it. adds: the length (L2 norm) of what is added. stream: the length of the
    sum so far. None is centred or normalised. direction: the cosine between what is added and the
    stream before it; +1 goes on the same way, −1 takes back. Where attention and feed-forward work
    side by side (GPT-NeoX), that is the stream that both of them read.
    """
    asked = Asked.of(argument)
    check_no_place(asked.words)
    looked = subject(shell, asked.whole)
    from minillm_repl.insight.attribution import residual_view
    from minillm_repl.render.attribution import residual_picture

    show(shell, residual_view(looked), residual_picture, asked.output)
