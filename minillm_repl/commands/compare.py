"""`:compare`."""

from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, TextArgument, Words
from minillm_repl.repl.model_loading import ModelFuture
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.tokenizer.base import decode
from minillm_repl.tokenizer.lookup import count_prefix_spaces, has_same_vocabulary
from minillm_repl.views.inspecting import inspect_ids, show_view, text_ids


@command(
    "compare",
    arguments=(
        Words("path", "PATH|NAME", required=True, completion="checkpoint"),
        TextArgument(quoted=True),
    ),
    json=True,
    aliases=("비교",),
    group="Predictions",
)
def compare(shell: Shell, asked: Arguments) -> None:
    """Compare the predictions with those of another checkpoint.

    Both models read the text so far, or the text in quotes. The view shows their most likely next
    tokens side by side.

    Bits per byte are measured over the same bytes of the text, without special tokens. They compare
    any two models.

    If both models have the same vocabulary and tokenize the text alike, the view also compares
    every position. KL(open ‖ other) = Σ p · ln(p / q) is in nats; p is the open model and q the
    other. `reverse` is KL(other ‖ open). The view also counts the positions where both have the
    same top token. Identical models have a KL of 0 and agree everywhere.

    The open model stays open.
    """
    model = shell.require_model()
    ids = text_ids(shell, model, asked.text)
    path = find_checkpoint(asked.path)
    other = shell.wait_for_model(ModelFuture(shell.session.workspace.loader, path), path)
    tokenizer = model.checkpoint.tokenizer
    text = asked.text or decode(tokenizer, ids)
    # what the tokenizer has put before it, and does not take off again
    if not asked.text and not tokenizer.prefix:
        text = text[count_prefix_spaces(tokenizer, ids) :]
    shared = has_same_vocabulary(tokenizer, other.checkpoint.tokenizer)
    theirs = ids if shared else shell.encode(other, text)
    subjects = inspect_ids(shell, model, ids, text), inspect_ids(shell, other, theirs, text)
    from minillm_repl.insight.comparison import compare_view
    from minillm_repl.render.texts import compare_picture

    ours, theirs_name = safe_line(model.name), safe_line(other.name)
    names = (_("{model} (open)", model=ours) if ours == theirs_name else ours, theirs_name)
    show_view(shell, compare_view(*subjects, names), compare_picture, asked.output)
