"""`:prob`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, show
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.window import seen_as


@command("prob", ":prob TEXT", aliases=("확률",), verbatim=True, group="What it expects")
def prob(shell: Shell, argument: str) -> None:
    """Show how likely the model finds what you would say next.

    TEXT is taken as it is, as a continuation of the text so far, token by token: the probability by
    the model's own softmax after all that is before, the rank (1 = likeliest), and the token that
    was the likeliest there. together: the product; the surprisal is −log2 of it. Where the same
    with a space before it is likelier, it is that.
    """
    asked, model = Asked.verbatim(argument), shell.model()
    if not asked.text:
        raise UserError(_(":prob needs the text whose probability you want to know"))
    ids = shell.session.ids
    if not ids:
        raise UserError(_("there is no text that this could continue: type a prompt first"))
    from minillm_repl.generate.next_token import prob_view
    from minillm_repl.render.next_token import prob_picture

    tokenizer = model.checkpoint.tokenizer
    readings = [shell.encode(model, asked.text, start=False)]
    if not asked.text.startswith(" ") and len(
        spaced := tokenizer.encode(" " + asked.text, start=False)
    ) <= len(readings[0]):  # a tokenizer of words: the space is a part of the first
        readings.append(spaced)
    views = [prob_view(model.decoder, tokenizer, ids, more, shell.interrupted) for more in readings]
    view = min(views, key=lambda view: view.bits)
    # what the last was expected after
    read = [*ids, *(each.token.id for each in view.chances[:-1])]
    show(shell, seen_as(view, model.seen(read)), prob_picture, asked.output)
