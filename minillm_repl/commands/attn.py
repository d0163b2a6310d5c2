"""`:attn`."""

from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command(
    "attn", ":attn [LAYER[.HEAD]] [TEXT]", aliases=("attention", "어텐션"), group="Look inside"
)
def attn(shell: Shell, argument: str) -> None:
    """Show who looks at whom: attention weights.

    :attn 2.1 is head 1 of layer 2: rows ask, columns answer, a row adds up to 100 %.
    :attn 2 is all heads of layer 2, small. :attn alone is where the last token looked, through
    every head. A weight is softmax(q·k / √head size): how much of the column's value flows into the
    row. It is no explanation: :why tells what a head does to the answer. A pattern's score is the
    share of the weight that goes where it says, as a mean over the positions that have such a
    place; in brackets is the chance level: what even attention over all that each of them sees
    would give on this text. itself: all positions but 0. previous token: from position 2 on, for
    before 1 comes the first token. first token: from 1 on. same token: an earlier token that is the
    same. induction on this text: the token after such an earlier one. The last two need three
    positions that have such a place; a text that repeats itself by chance is weak evidence of
    induction, one of random tokens twice over is the usual test. Layers and heads count from 0.
    """
    asked = Asked.of(argument)
    chosen, text = asked.selector(r"(\d{1,9})(?:\.(\d{1,9}))?")
    looked = subject(shell, text)
    from minillm_repl.insight.attention import focus_view, head_view, layer_view
    from minillm_repl.render.attention import focus_picture, head_picture, head_pins, layer_picture

    if chosen is None:
        show(shell, focus_view(looked), focus_picture, asked.output)
    elif chosen[2] is None:
        show(shell, layer_view(looked, int(chosen[1])), layer_picture, asked.output)
    else:
        view = head_view(looked, int(chosen[1]), int(chosen[2]))
        show(shell, view, head_picture, asked.output, pins=head_pins(view))
