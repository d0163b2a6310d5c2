"""`:neurons`."""

from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "neurons",
    arguments=(Layer("optional", part="neuron", required=True), TextArgument()),
    json=True,
    aliases=("뉴런",),
    group="Look inside",
    example=":neurons 0.17 날씨가 좋",
)
def neurons(shell: Shell, asked: Arguments) -> None:
    """Show which tokens activate the neurons of an MLP.

    A neuron is one dimension of the hidden layer of an MLP. Its value is taken after the activation
    function, and after the gate if the model has one.
    :neurons 2 lists the neurons of layer 2 with the largest |activation| on this text, each with
    the tokens it fired on.
    :neurons 2.17 shows neuron 17 over the whole text.

    Layers and neurons count from 0.
    """
    looked = inspect_text(shell, asked.text)
    from minillm_repl.insight.neurons import neurons_view
    from minillm_repl.render.thinking import neuron_picture, neurons_picture

    view = neurons_view(looked, asked.layer, asked.neuron)
    show_view(
        shell, view, neurons_picture if asked.neuron is None else neuron_picture, asked.output
    )
