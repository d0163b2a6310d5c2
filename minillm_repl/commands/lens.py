"""`:lens`."""

from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("lens", ":lens [POSITION] [TEXT]", aliases=("렌즈",), group="Look inside")
def lens(shell: Shell, argument: str) -> None:
    """Show what the model would say if it stopped at each layer.

    This is the logit lens: the last norm, with its own statistics, and the output head on the
    residual stream at each place; the last row is the model's real output. p and rank are those of
    the token that is the likeliest at the end. KL is KL(final ‖ here) = Σ final · ln(final / here),
    in nats: what one who believes the distribution here would lose to the final one. POSITION
    counts from 0, or from the end if negative; without one it is the last.
    """
    asked = Asked.of(argument)
    chosen, text = asked.selector(r"@?(-?\d{1,9})")
    looked = subject(shell, text)
    from minillm_repl.insight.lens import lens_view
    from minillm_repl.render.lens import lens_picture

    show(shell, lens_view(looked, int(chosen[1]) if chosen else -1), lens_picture, asked.output)
