"""`:attn`."""

from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "attn",
    arguments=(Layer("optional"), TextArgument()),
    json=True,
    aliases=("attention", "어텐션"),
    group="Look inside",
    example=":attn 2.1 날씨가 좋",
)
def attn(shell: Shell, asked: Arguments) -> None:
    """Show attention weights.

    :attn 2.1 shows head 1 of layer 2. Rows are queries, columns are keys, and each row sums to
    100%.
    :attn 2 shows all heads of layer 2 as small maps.
    :attn alone shows what the last token attends to, in every head.

    A weight is softmax(q·k / √d_head): the share of the column's value that goes into the row.
    Attention does not explain the answer: `:why` shows what a head adds to it.

    The score of a pattern is the share of attention that follows the pattern, as a mean over the
    positions where the pattern is possible. The number in brackets is the uniform baseline: the
    score of attention spread evenly over all visible positions.
        itself: all positions except 0
        previous token: positions from 2 on (before position 1 is the first token)
        first token: positions from 1 on
        same token: an earlier token that is the same
        induction on this text: the token after such an earlier token

    The last two need three such positions. A text that happens to repeat itself is weak evidence of
    induction; the usual test is a sequence of random tokens, given twice. Layers and heads count
    from 0.
    """
    looked = inspect_text(shell, asked.text)
    from minillm_repl.insight.attention import focus_view, head_view, layer_view
    from minillm_repl.render.attention import focus_picture, head_picture, head_pins, layer_picture

    if asked.layer is None:
        show_view(shell, focus_view(looked), focus_picture, asked.output)
    elif asked.head is None:
        show_view(shell, layer_view(looked, asked.layer), layer_picture, asked.output)
    else:
        view = head_view(looked, asked.layer, asked.head)
        show_view(shell, view, head_picture, asked.output, pinned=head_pins(view))
