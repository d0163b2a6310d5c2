"""The closing lines of a training run."""

from math import exp, inf

from rich.text import Text

from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES
from minillm_repl.training import TrainingFinished


def summary(finished: TrainingFinished) -> Text:
    """Return the closing lines of a training run."""
    kept_step, steps = finished.kept, finished.steps
    # The kept step has the best evaluation, so each later one was no better.
    evaluations_without_improvement = sum(step > kept_step for step, _loss in finished.val_curve)
    reason = {
        "done": _("done") + " · ",
        "interrupt": _("stopped by Ctrl-C") + " · ",
        "patience": _n(
            "stopped early: no improvement for {n} evaluation",
            "stopped early: no improvement for {n} evaluations",
            evaluations_without_improvement,
        )
        + "\n",
        "diverged": _("stopped: the loss was not finite after step {step:,}", step=steps) + "\n",
    }[finished.reason]
    val = finished.val_loss
    loss = finished.train_loss if val is None else val
    run = _(
        "{steps:,} steps · {seconds:,.1f} s · loss {first:.4f} → {last:.4f} nats per token",
        steps=steps,
        seconds=finished.seconds,
        first=finished.first_loss,
        last=finished.last_loss,
    )
    quality = [
        _("perplexity {number:.2f}", number=perplexity(loss)),
        _("{rate:.3f} bits per character", rate=finished.bits_per_character),
    ]
    if val is not None:
        both = [
            _("val loss {loss:.4f}", loss=val),
            _("train loss {loss:.4f}", loss=finished.train_loss),
        ]
        quality = [*both, *quality]
    work = [_("{n:,} tokens", n=finished.tokens)]
    if finished.tokens and finished.step_seconds:
        work.append(_("{speed:,.0f} tokens/s", speed=finished.tokens / finished.step_seconds))
    if kept_step != steps:
        work.append(_("the weights of step {step:,} are kept", step=kept_step))
    return Text(f"{reason}{run}\n{' · '.join(quality)}\n{' · '.join(work)}", FIGURES)


def perplexity(loss: float) -> float:
    """Return what a loss in nats per token amounts to: among how many tokens, all as likely, the
    model would guess.
    """
    return exp(loss) if loss < 700 else inf  # larger ones are too large for a float


def passes_text(passes: float) -> str:
    """Return how often a text is read: `0.15`, `3.2`, `397`."""
    return f"{passes:.2g}" if passes < 10 else f"{passes:,.0f}"
