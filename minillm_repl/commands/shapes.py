"""`:shapes`."""

from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import samplers_on
from minillm_repl.repl.shell import Shell


@command("shapes", ":shapes [TEXT]", group="Look inside")
def shapes(shell: Shell, argument: str) -> None:
    """Show the whole way from text to next token, as shapes.

    Each row is something that the model makes on its way, with the shape that it really has for
    this text, and the first numbers of the last token's row: text, tokens, ids, a vector for each,
    what block 0 makes of them, what the last block leaves, logits, probabilities, and what the
    samplers that are on let be drawn. Queries and keys are as they enter the dot product:
    normalised and turned where the family does that.
    """
    asked = Asked.of(argument)
    looked, settings = subject(shell, asked.whole), shell.session.settings

    from minillm_repl.generate.sampling import Probabilities, Scores, process, softmax
    from minillm_repl.insight.shapes import shapes_view
    from minillm_repl.render.shapes import shapes_picture

    def draw(logits: Scores) -> Probabilities:
        return softmax(process(logits, settings, looked.ids))[0]

    view = shapes_view(looked, draw, ", ".join(samplers_on(settings)))
    show(shell, view, shapes_picture, asked.output)
