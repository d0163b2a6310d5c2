"""`:near`."""

import re

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Arguments, import_insight, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.lookup import find_token_ids

_TERM = re.compile(r"\s+([-+−])\s+")


@command("near", ":near TOKEN [± TOKEN ...]", aliases=("이웃",), group="Look inside")
def near(shell: Shell, argument: str) -> None:
    """Show the nearest tokens in the embedding.

    The view shows cosines between rows of the embedding (the input side), and between rows of the
    output head (the output side). The rows are as stored: not centred, and not scaled by the final
    norm.

    `:near king - man + woman` adds and subtracts unit vectors before the search, and leaves its own
    terms out.

    Write a token as it is shown (␣ is a space), or as #ID. A word stands for the token with a space
    before it, if there is one.
    """
    asked = Arguments.parse(argument)
    first, *rest = _TERM.split(asked.words)
    if not first:
        raise UserError(_(":near needs a token; `:tokens TEXT` shows the tokens of a text"))
    model = shell.require_model()
    signed = [
        (1, first),
        *(
            (1 if sign == "+" else -1, word)
            for sign, word in zip(rest[::2], rest[1::2], strict=True)
        ),
    ]
    tokenizer = model.checkpoint.tokenizer
    terms = [(sign, find_token_ids(tokenizer, word)[-1]) for sign, word in signed]
    import_insight(shell)
    from minillm_repl.insight.embeddings import near_view
    from minillm_repl.render.texts import near_picture

    show_view(shell, near_view(model.language_model, tokenizer, terms), near_picture, asked.output)
