"""`:qkv`."""

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Arguments, inspect_text, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("qkv", ":qkv LAYER.HEAD [POSITION] [key=P] [TEXT]", words=("key=",), group="Look inside")
def qkv(shell: Shell, argument: str) -> None:
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
    asked = Arguments.parse(argument)
    chosen, text = asked.split_selector(
        r"(\d{1,9})\.(\d{1,9})(?:\s+@?(-?\d{1,9}))?(?:\s+key=@?(-?\d{1,9}))?"
    )
    if chosen is None:
        raise UsageError(_(":qkv takes a layer and a head, such as 0.0"))
    looked = inspect_text(shell, text)
    from minillm_repl.insight.query import dot_view, qkv_view
    from minillm_repl.render.by_hand import dot_picture
    from minillm_repl.render.thinking import qkv_picture

    place = int(chosen[1]), int(chosen[2]), int(chosen[3] or -1)
    if chosen[4]:
        show_view(shell, dot_view(looked, *place, int(chosen[4])), dot_picture, asked.output)
    else:
        show_view(shell, qkv_view(looked, *place), qkv_picture, asked.output)
