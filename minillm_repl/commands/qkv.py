"""`:qkv`."""

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("qkv", ":qkv LAYER.HEAD [POSITION] [key=P] [TEXT]", words=("key=",), group="Look inside")
def qkv(shell: Shell, argument: str) -> None:
    """Show one head at work: query, keys, values, and the mix.

    The query of one position meets the key of each position up to its own: the dot product q·k,
    divided by √d (d is the head's size), then softmax over all of them. The values, each times its
    share, add up to what the head mixes. q and k are as they enter the dot product: normalised and
    turned where the family does that. With key=P only the key of position P, number by number: each
    q × k, their sum, ÷ √d, and its share of the softmax. POSITION and P count from 0, or from the
    end if negative; without POSITION it is the last. Layers and heads count from 0.
    """
    asked = Asked.of(argument)
    chosen, text = asked.selector(
        r"(\d{1,9})\.(\d{1,9})(?:\s+@?(-?\d{1,9}))?(?:\s+key=@?(-?\d{1,9}))?"
    )
    if chosen is None:
        raise Misunderstood(_(":qkv takes a layer and a head, such as 0.0"))
    looked = subject(shell, text)
    from minillm_repl.insight.query import dot_view, qkv_view
    from minillm_repl.render.by_hand import dot_picture
    from minillm_repl.render.thinking import qkv_picture

    place = int(chosen[1]), int(chosen[2]), int(chosen[3] or -1)
    if chosen[4]:
        show(shell, dot_view(looked, *place, int(chosen[4])), dot_picture, asked.output)
    else:
        show(shell, qkv_view(looked, *place), qkv_picture, asked.output)
