"""`:sampler`."""

from minillm_repl.repl.inspecting import Asked, show, text_ids
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import VERBOSE_ROWS
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.window import seen_as


@command("sampler", ":sampler [TEXT]", aliases=("샘플러",), group="What it expects")
def sampler(shell: Shell, argument: str) -> None:
    """Show what each sampler makes of what could come next.

    From left to right: the logit, the model's own probabilities (its softmax), and those after each
    sampler that is on, in the order in which they are applied: repetition penalty, temperature,
    top-k, top-p, min-p. The last is what is drawn from; `cut` is what can no longer be drawn.
    entropy: −Σ p·log2 p of a column's probabilities, in bits: how open the choice is.
    `:temp sweep` shows the same candidates at several temperatures.
    """
    _show(shell, argument, sweep=False)


def sweep(shell: Shell, argument: str) -> None:
    """Show the likeliest next tokens at several temperatures."""
    _show(shell, argument, sweep=True)


def _show(shell: Shell, argument: str, *, sweep: bool) -> None:
    asked, model = Asked.of(argument), shell.model()
    ids = text_ids(shell, model, asked.whole)
    from minillm_repl.generate.next_token import next_logits, sampler_view, sweep_view
    from minillm_repl.render.next_token import sampler_picture, sweep_picture

    settings, tokenizer = shell.session.settings, model.checkpoint.tokenizer
    logits = next_logits(model.decoder, ids, shell.interrupted)
    top = settings.verbose or VERBOSE_ROWS
    seen = model.seen(ids)
    if sweep:
        show(
            shell,
            seen_as(sweep_view(logits, settings, ids, tokenizer, top), seen),
            sweep_picture,
            asked.output,
        )
    else:
        show(
            shell,
            seen_as(sampler_view(logits, settings, ids, tokenizer, top), seen),
            sampler_picture,
            asked.output,
        )
