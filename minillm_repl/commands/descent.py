"""`:descent`."""

from minillm_repl.repl.arguments import Arguments, Option, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import number
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "descent",
    arguments=(Option("rate", number(0, 1000), 0.1), TextArgument()),
    json=True,
    group="Train",
)
def descent(shell: Shell, asked: Arguments) -> None:
    """Take one step of gradient descent on a copy, by hand.

    At each position, the model gives the actual next token a probability p. The loss there is −ln
    p; training lowers the mean loss. The gradient of a weight is the change of the mean loss per
    unit of the weight. The step subtracts rate × gradient from every weight; the column `after`
    shows the new loss.

    Below is the weight with the largest |gradient|, with its tensor name in the model file. Indices
    count from 0.

    `:train` does this many times with a better optimizer. The open model and the interventions do
    not change.
    """
    looked = inspect_text(shell, asked.text)
    from minillm_repl.insight.descent import descent_view
    from minillm_repl.render.by_hand import descent_picture

    show_view(
        shell,
        descent_view(looked, asked.rate, shell.require_model().checkpoint.weight_map),
        descent_picture,
        asked.output,
    )
