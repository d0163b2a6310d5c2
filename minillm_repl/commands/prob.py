"""`:prob`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.truncation import with_truncation
from minillm_repl.views.inspecting import show_view


@command(
    "prob",
    arguments=(TextArgument(verbatim=True, required=True),),
    json=True,
    aliases=("확률",),
    group="Predictions",
)
def prob(shell: Shell, asked: Arguments) -> None:
    """Show the probability of a continuation that you type.

    The view shows TEXT as a continuation of the text so far. For each token, it shows the
    probability by the model's own softmax, the rank (1 = most likely), and the top token at that
    position.

    The total is the product of the probabilities; the surprisal is −log2 of it. If TEXT is more
    likely with a space before it, the view shows it with the space.
    """
    model = shell.require_model()
    ids = shell.session.conversation.ids
    if not ids:
        raise UserError(_("no text to append this to: type a prompt first"))
    from minillm_repl.generate.next_token import prob_view
    from minillm_repl.render.next_token import prob_picture

    tokenizer = model.checkpoint.tokenizer
    readings = [shell.encode(model, asked.text, start=False)]
    if not asked.text.startswith(" ") and len(
        spaced := tokenizer.encode(" " + asked.text, add_special=False)
    ) <= len(readings[0]):  # a tokenizer of words: the space is a part of the first
        readings.append(spaced)
    views = [prob_view(model.decoder, tokenizer, ids, more, shell.interrupted) for more in readings]
    view = min(views, key=lambda view: view.bits)
    # what the last was expected after
    read = [*ids, *(each.token.id for each in view.chances[:-1])]
    show_view(shell, with_truncation(view, model.visible_window(read)), prob_picture, asked.output)
