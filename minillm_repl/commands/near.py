"""`:near`."""

import re

from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.lookup import find_token_ids
from minillm_repl.views.inspecting import import_torch, show_view

_TERM = re.compile(r"\s+([-+−])\s+")


@command(
    "near",
    arguments=(Words("terms", "TOKEN [± TOKEN ...]", required=True),),
    json=True,
    aliases=("이웃",),
    group="Look inside",
)
def near(shell: Shell, asked: Arguments) -> None:
    """Show the nearest tokens in the embedding.

    The view shows cosines between rows of the embedding (the input side), and between rows of the
    output head (the output side). The rows are as stored: not centred, and not scaled by the final
    norm.

    `:near king - man + woman` adds and subtracts unit vectors before the search, and leaves its own
    terms out.

    Write a token as it is shown (␣ is a space), or as #ID. A word stands for the token with a space
    before it, if there is one.
    """
    first, *rest = _TERM.split(asked.terms)
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
    import_torch(shell)
    from minillm_repl.insight.embeddings import near_view
    from minillm_repl.render.texts import near_picture

    show_view(shell, near_view(model.language_model, tokenizer, terms), near_picture, asked.output)
