"""`:descent`."""

from dataclasses import dataclass, replace

from minillm_repl.repl.argument_parsing import check_no_place, with_options
from minillm_repl.repl.inspecting import Asked, show, subject
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

    After each token of the text the model gives the one that does come next a probability p; −ln p
    is its loss there, and the mean of these is what training makes smaller. The gradient of a
    weight is how much that mean grows per unit that the weight does; the step takes rate × gradient
    off every weight, and all is measured again: `after`. Below, the weight with the largest
    |gradient|, its tensor named as in the model's file; indices count from 0.
    `:train` does this many times, with better steps. What is open, and what is changed in it, stays
    as it is.
    """
    asked = Asked.of(argument)
    said, how = with_options(asked.words, Descent())
    check_no_place(said.strip())
    looked = subject(shell, replace(asked, words=said.strip()).whole)
    from minillm_repl.insight.descent import descent_view
    from minillm_repl.render.by_hand import descent_picture

    show(
        shell,
        descent_view(looked, how.rate, shell.model().checkpoint.recipe),
        descent_picture,
        asked.output,
    )
