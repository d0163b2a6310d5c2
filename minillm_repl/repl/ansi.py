"""What rich draws, as prompt_toolkit takes it."""

import io

from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.output import ColorDepth
from rich.console import Console, RenderableType


def render_ansi(renderables: list[RenderableType], width: int, target: Console) -> ANSI:
    """Return things drawn one below the other, in a width, with as many colours as `like` has."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=True,
        width=width,
        color_system="standard",
        no_color=target.no_color,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for part in renderables:
        console.print(part, no_wrap=True, overflow="crop")
    return ANSI(buffer.getvalue().rstrip("\n"))


def color_depth(target: Console) -> ColorDepth | None:
    """Return the depth for an application beside a console; None leaves it to prompt_toolkit."""
    return ColorDepth.DEPTH_1_BIT if target.no_color else None
