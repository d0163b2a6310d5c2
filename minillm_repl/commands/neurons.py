"""`:neurons`."""

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("neurons", ":neurons LAYER[.NEURON] [TEXT]", aliases=("뉴런",), group="Look inside")
def neurons(shell: Shell, argument: str) -> None:
    """Show what the neurons of a feed-forward fire on.

    A neuron is one number inside a feed-forward, after the activation function, and the gate where
    the family has one.
    :neurons 2 lists those of layer 2 that were most active on the text, by their largest
    |activation|, each with the tokens that it fired on. :neurons 2.17 shows neuron 17 along the
    whole text. Layers and neurons count from 0.
    """
    asked = Asked.of(argument)
    chosen, text = asked.selector(r"(\d{1,9})(?:\.(\d{1,9}))?")
    if chosen is None:
        raise Misunderstood(
            _(":neurons takes a layer, such as 0, or a layer and a neuron, such as 0.17")
        )
    looked = subject(shell, text)
    from minillm_repl.insight.neurons import neurons_view
    from minillm_repl.render.thinking import neuron_picture, neurons_picture

    view = neurons_view(looked, int(chosen[1]), int(chosen[2]) if chosen[2] else None)
    show(shell, view, neuron_picture if chosen[2] else neurons_picture, asked.output)
