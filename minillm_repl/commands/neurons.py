"""`:neurons`."""

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Arguments, inspect_text, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("neurons", ":neurons LAYER[.NEURON] [TEXT]", aliases=("뉴런",), group="Look inside")
def neurons(shell: Shell, argument: str) -> None:
    """Show which tokens activate the neurons of an MLP.

    A neuron is one dimension of the hidden layer of an MLP. Its value is taken after the activation
    function, and after the gate if the model has one.
    :neurons 2 lists the neurons of layer 2 with the largest |activation| on this text, each with
    the tokens it fired on.
    :neurons 2.17 shows neuron 17 over the whole text.

    Layers and neurons count from 0.
    """
    asked = Arguments.parse(argument)
    chosen, text = asked.split_selector(r"(\d{1,9})(?:\.(\d{1,9}))?")
    if chosen is None:
        raise UsageError(_(":neurons takes a layer (0), or a layer and a neuron (0.17)"))
    looked = inspect_text(shell, text)
    from minillm_repl.insight.neurons import neurons_view
    from minillm_repl.render.thinking import neuron_picture, neurons_picture

    view = neurons_view(looked, int(chosen[1]), int(chosen[2]) if chosen[2] else None)
    show_view(shell, view, neuron_picture if chosen[2] else neurons_picture, asked.output)
