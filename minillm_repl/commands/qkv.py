"""`:qkv`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.looking import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("qkv", ":qkv LAYER.HEAD [POSITION] [TEXT]", group="Look inside")
def qkv(shell: Shell, argument: str) -> None:
    """Show one head at work: query, keys, values, and the mix.

    The query of one position meets the key of each position up to its own: the dot product q·k, divided by √d (d is the
    head's size), then softmax over all of them. The values, each times its share, add up to what the head mixes.
    q and k are as they enter the dot product: normalised and turned where the family does that.
    POSITION counts from 0, or from the end if negative; without one it is the last. Layers and heads count from 0.
    """
    asked = Asked.of(argument)
    chosen, text = asked.selector(r"(\d{1,9})\.(\d{1,9})(?:\s+(-?\d{1,9}))?")
    if chosen is None:
        raise UserError(_(":qkv takes a layer and a head, such as 0.0"))
    looked = subject(shell, text)
    from minillm_repl.insight.query import qkv_view
    from minillm_repl.render.thinking import qkv_picture

    view = qkv_view(looked, int(chosen[1]), int(chosen[2]), int(chosen[3] or -1))
    show(shell, view, qkv_picture, asked.json)
