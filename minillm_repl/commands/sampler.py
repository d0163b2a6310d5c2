"""`:sampler`."""

from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.truncation import with_truncation
from minillm_repl.views.inspecting import show_view, text_ids


@command(
    "sampler",
    arguments=(TextArgument(free=True),),
    json=True,
    aliases=("샘플러",),
    group="Predictions",
)
def sampler(shell: Shell, asked: Arguments) -> None:
    """Show how each sampler changes the next-token distribution.

    From left to right: the logit, the model's own probability (its softmax), and the probability
    after each active sampler. The samplers apply in this order: repetition penalty, temperature,
    top-k, top-p, min-p. Tokens are sampled from the last column; `dropped` marks tokens that a
    sampler removed.

    Entropy is −Σ p·log2 p of the probabilities in a column, in bits: how open the choice is.

    `:temp sweep` shows the same candidates at several temperatures.
    """
    _show(shell, asked, sweep=False)


def sweep(shell: Shell, asked: Arguments) -> None:
    """Show the likeliest next tokens at several temperatures."""
    _show(shell, asked, sweep=True)


def _show(shell: Shell, asked: Arguments, *, sweep: bool) -> None:
    model = shell.require_model()
    ids = text_ids(shell, model, asked.text)
    from minillm_repl.generate.next_token import next_logits, sampler_view, sweep_view
    from minillm_repl.render.next_token import sampler_picture, sweep_picture

    settings, tokenizer = shell.session.settings, model.checkpoint.tokenizer
    logits = next_logits(model.decoder, ids, shell.interrupted)
    top = settings.verbose or DEFAULT_VERBOSE_ROWS
    seen = model.visible_window(ids)
    if sweep:
        show_view(
            shell,
            with_truncation(sweep_view(logits, settings, ids, tokenizer, top), seen),
            sweep_picture,
            asked.output,
        )
    else:
        show_view(
            shell,
            with_truncation(sampler_view(logits, settings, ids, tokenizer, top), seen),
            sampler_picture,
            asked.output,
        )
