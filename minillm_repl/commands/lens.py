"""`:lens`."""

from minillm_repl.repl.inspecting import Arguments, inspect_text, show_view
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("lens", ":lens [POSITION] [TEXT]", aliases=("렌즈",), group="Look inside")
def lens(shell: Shell, argument: str) -> None:
    """Show the next-token prediction at each layer (logit lens).

    This is the logit lens. It applies the final norm, with the statistics of each layer, and the
    output head to the residual stream. The last row is the model's real output.

    p and rank are those of the token that is most likely at the end. KL is KL(final ‖ here) = Σ
    final · ln(final / here), in nats: the distance of this layer's distribution from the final one.

    POSITION counts from 0, or from the end if negative; the default is the last.
    """
    asked = Arguments.parse(argument)
    chosen, text = asked.split_selector(r"@?(-?\d{1,9})")
    looked = inspect_text(shell, text)
    from minillm_repl.insight.lens import lens_view
    from minillm_repl.render.lens import lens_picture

    show_view(
        shell, lens_view(looked, int(chosen[1]) if chosen else -1), lens_picture, asked.output
    )
