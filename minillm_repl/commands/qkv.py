"""`:qkv`."""

from minillm_repl.repl.arguments import (
    Arguments,
    Layer,
    Option,
    Position,
    TextArgument,
    position,
)
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "qkv",
    arguments=(
        Layer("required", required=True), Position(), Option("key", position, None, "P"),
        TextArgument(),
    ),
    json=True,
    group="Look inside",
    example=":qkv 0.1 1 key=0 날씨가 좋",
)  # fmt: skip
def qkv(shell: Shell, asked: Arguments) -> None:
    """Show one attention head: query, keys, values and output.

    The query of one position meets the key of each position up to its own. Their dot product q·k is
    divided by √d (d is the head dimension). A softmax over all positions gives the weights. The
    output of the head is the sum of the values, each times its weight.

    q and k are as they enter the dot product: after normalization and RoPE, if the model has them.

    With key=P, the view shows only the key of position P, number by number: each q × k, their sum,
    ÷ √d, and its softmax weight. POSITION and P count from 0, or from the end if negative; the
    default POSITION is the last. Layers and heads count from 0.

    Library analogy: the query is what you look for. A key is the title on the spine of a book; the
    value is its content. The better the title fits, the more of that book goes into the output.
    """
    looked = inspect_text(shell, asked.text)
    from minillm_repl.insight.query import dot_view, qkv_view
    from minillm_repl.render.by_hand import dot_picture
    from minillm_repl.render.thinking import qkv_picture

    place = asked.layer, asked.head, asked.position
    if asked.key is not None:
        show_view(shell, dot_view(looked, *place, asked.key), dot_picture, asked.output)
    else:
        show_view(shell, qkv_view(looked, *place), qkv_picture, asked.output)
