"""`:compare`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, looking_at, show, text_ids
from minillm_repl.repl.model_loading import Loading
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import find
from minillm_repl.tokenizer.base import decode
from minillm_repl.tokenizer.lookup import put_before, same_vocabulary


@command(
    "compare",
    ':compare PATH|NAME ["TEXT"]',
    aliases=("비교",),
    completion="checkpoint",
    group="What it expects",
)
def compare(shell: Shell, argument: str) -> None:
    """Show how another checkpoint would have gone on.

    Both read the text so far, or the one in quotes: their likeliest next tokens side by side; bits
    per byte over the same bytes of the text, special tokens left out, which compares any two
    models. If they share a vocabulary and cut the text alike, after each token too: KL(open ‖
    other) = Σ p · ln(p / q) in nats, p being the open model's probabilities and q the other's, back
    the other way round; and at how many positions both find the same token the likeliest. Identical
    models have a KL of 0, and agree everywhere. The open model stays open.
    """
    asked = Asked.of(argument)
    if not asked.words:
        raise UserError(
            _(":compare needs another checkpoint: a file, a folder, or a name that `:models` lists")
        )
    model = shell.model()
    ids = text_ids(shell, model, asked.text)
    path = find(asked.words)
    other = shell.wait_for(Loading(shell.session.opening, path), path)
    tokenizer = model.checkpoint.tokenizer
    text = asked.text or decode(tokenizer, ids)
    # what the tokenizer has put before it, and does not take off again
    if not asked.text and not tokenizer.lead:
        text = text[put_before(tokenizer, ids) :]
    shared = same_vocabulary(tokenizer, other.checkpoint.tokenizer)
    theirs = ids if shared else shell.encode(other, text)
    subjects = looking_at(shell, model, ids, text), looking_at(shell, other, theirs, text)
    from minillm_repl.insight.comparison import compare_view
    from minillm_repl.render.texts import compare_picture

    ours, theirs_name = safe_line(model.name), safe_line(other.name)
    names = (_("{model} (open)", model=ours) if ours == theirs_name else ours, theirs_name)
    show(shell, compare_view(*subjects, names), compare_picture, asked.output)
