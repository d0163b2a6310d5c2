"""`:grad`."""

from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import TOKENS, find_tokens, inspect_text, show_view


@command(
    "grad",
    arguments=(TOKENS, TextArgument(quoted=True)),
    json=True,
    aliases=("saliency", "기울기"),
    group="Look inside",
    example=':grad 다 "날씨가 좋"',
)
def grad(shell: Shell, asked: Arguments) -> None:
    """Attribute the next token to the input: gradient × embedding.

    The view shows the gradient of TOKEN's logit with respect to the embedding of each input token.
    The embedding is the input of the first layer, with learned position embeddings added.

    levels: the L2 norm of the gradient, which is the sensitivity to that token. bars: gradient ·
    embedding, which is to first order the logit that would be lost if the embedding were zero.

    Without TOKEN, the target is the most likely token. With `vs`, it is the difference of two
    logits. Write a token as in `:why`. A gradient describes small changes only; `:ablate` and
    `:patch` make large ones.
    """
    looked = inspect_text(shell, asked.text)
    from minillm_repl.insight.gradient import grad_view
    from minillm_repl.render.thinking import grad_picture

    show_view(
        shell, grad_view(looked, *find_tokens(looked, asked.texts)), grad_picture, asked.output
    )
