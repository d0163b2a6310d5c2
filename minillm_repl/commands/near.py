"""`:near`."""

import re

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, get_ready, show
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.lookup import find_token

_TERM = re.compile(r"\s+([-+−])\s+")


@command("near", ":near TOKEN [± TOKEN ...]", aliases=("이웃",), group="Look inside")
def near(shell: Shell, argument: str) -> None:
    """Show which tokens have vectors like a token's.

    Cosines between rows of the embedding, which is what the model reads, and of the output head,
    which is what it answers with: the rows as they are stored, neither centred nor scaled by the
    last norm.
    `:near king - man + woman` adds and takes away unit vectors before it looks; the terms
    themselves are left out. A token is written as it is shown (␣ is a space), or as #ID; a word is
    the token with a space before it, if there is one.
    """
    asked = Asked.of(argument)
    first, *rest = _TERM.split(asked.words)
    if not first:
        raise UserError(_(":near needs a token, such as one that `:tokens TEXT` shows"))
    model = shell.model()
    signed = [
        (1, first),
        *(
            (1 if sign == "+" else -1, word)
            for sign, word in zip(rest[::2], rest[1::2], strict=True)
        ),
    ]
    tokenizer = model.checkpoint.tokenizer
    terms = [(sign, find_token(tokenizer, word)[-1]) for sign, word in signed]
    get_ready(shell)
    from minillm_repl.insight.embeddings import near_view
    from minillm_repl.render.texts import near_picture

    show(shell, near_view(model.torch, tokenizer, terms), near_picture, asked.output)
