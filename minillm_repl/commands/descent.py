"""`:descent`."""

from dataclasses import dataclass, replace

from minillm_repl.repl.argument_parsing import check_not_selector, parse_options
from minillm_repl.repl.inspecting import Arguments, inspect_text, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import number, setting


@dataclass(frozen=True)
class Descent:
    """How far the step goes."""

    rate: float = setting(0.1, number(0, 1000), "how much of its gradient each weight moves by")


@command("descent", ':descent [rate=0.1] ["TEXT"]', words=("rate=",), group="Train")
def descent(shell: Shell, argument: str) -> None:
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
    asked = Arguments.parse(argument)
    said, how = parse_options(asked.words, Descent())
    check_not_selector(said.strip())
    looked = inspect_text(shell, replace(asked, words=said.strip()).full_text)
    from minillm_repl.insight.descent import descent_view
    from minillm_repl.render.by_hand import descent_picture

    show_view(
        shell,
        descent_view(looked, how.rate, shell.require_model().checkpoint.weight_map),
        descent_picture,
        asked.output,
    )
