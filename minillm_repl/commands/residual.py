"""`:residual`."""

from minillm_repl.repl.arguments import check_not_argument
from minillm_repl.repl.inspecting import Arguments, inspect_text, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("residual", ":residual [TEXT]", aliases=("잔차",), group="Look inside")
def residual(shell: Shell, argument: str) -> None:
    """Show the residual stream, layer by layer.

    The residual stream is the vector that runs through all layers, here at the last token. Each
    attention and each MLP adds to it.

    update: the L2 norm of what is added. residual: the L2 norm of the sum so far. Neither is
    centred or normalized.

    cos: the cosine of the update with the residual stream before it. +1 reinforces, 0 is
    orthogonal, −1 cancels. In models with parallel attention and MLP (GPT-NeoX), it is the stream
    that both of them read.
    """
    asked = Arguments.parse(argument)
    check_not_argument(asked.words)
    looked = inspect_text(shell, asked.full_text)
    from minillm_repl.insight.attribution import residual_view
    from minillm_repl.render.attribution import residual_picture

    show_view(shell, residual_view(looked), residual_picture, asked.output)
