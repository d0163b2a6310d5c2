"""What rich draws, as prompt_toolkit takes it."""

import io

from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.output import ColorDepth
from rich.console import Console, RenderableType


def formatted(parts: list[RenderableType], width: int, like: Console) -> ANSI:
    """Return things drawn one below the other, in a width, with as many colours as `like` has."""
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=True, width=width, color_system="standard", no_color=like.no_color,
                      markup=False, highlight=False, emoji=False)  # fmt: skip
    for part in parts:
        console.print(part, no_wrap=True, overflow="crop")
    return ANSI(buffer.getvalue().rstrip("\n"))


def color_depth(like: Console) -> ColorDepth | None:
    """Return the depth for an application beside a console; None leaves it to prompt_toolkit."""
    return ColorDepth.DEPTH_1_BIT if like.no_color else None
