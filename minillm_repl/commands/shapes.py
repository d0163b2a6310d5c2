"""`:shapes`."""

from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import active_samplers
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "shapes",
    arguments=(TextArgument(free=True),),
    json=True,
    group="Look inside",
    example=":shapes 날씨가 좋",
)
def shapes(shell: Shell, asked: Arguments) -> None:
    """Trace the forward pass, with tensor shapes.

    Each row is one tensor of the forward pass, with its shape for this text and the first values at
    the last token. The rows are text, tokens, ids, token embeddings, the parts of block 0, the
    output of the last block, logits, probabilities, and the tokens that the active samplers keep.

    Queries and keys are as they enter the dot product: after normalization and RoPE, if the model
    has them.
    """
    looked, settings = inspect_text(shell, asked.text), shell.session.settings

    from minillm_repl.generate.sampling import Probabilities, Scores, process_logits, softmax
    from minillm_repl.insight.shapes import shapes_view
    from minillm_repl.render.shapes import shapes_picture

    def draw(logits: Scores) -> Probabilities:
        return softmax(process_logits(logits, settings, looked.ids))[0]

    view = shapes_view(looked, draw, ", ".join(active_samplers(settings)))
    show_view(shell, view, shapes_picture, asked.output)
