"""What rich draws in applications of prompt_toolkit, and one of these: the whole of a view on a
terminal that is too small for it.
"""

import io

from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import (
    ANSI,
    StyleAndTextTuples,
    fragment_list_width,
    split_lines,
    to_formatted_text,
)
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import HSplit, Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.utils import get_cwidth
from rich.console import Console, RenderableType

from minillm_repl.language import _
from minillm_repl.repl.keyboard import suspend


def render_ansi(renderables: list[RenderableType], width: int, target: Console) -> ANSI:
    """Return things drawn one below the other, in a width, in the colours that `target` has."""
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


class Pager:
    """A view that is scrolled; its first rows and columns, `pinned` many, stay where they are."""

    def __init__(
        self, view: RenderableType, width: int, console: Console, pinned: tuple[int, int] = (0, 0)
    ) -> None:
        self._pinned_rows, self._pinned_columns = pinned
        self._lines = [*split_lines(to_formatted_text(render_ansi([view], width, console)))]
        self._columns = max(map(fragment_list_width, self._lines))
        self._row = self._column = 0
        body = Window(FormattedTextControl(self._visible_part, focusable=True, show_cursor=False))
        help_ = _("← → ↑ ↓ Page Up Page Down Home End move · q leaves")
        below = Window(FormattedTextControl([("class:help", help_)]), height=1)
        self._app: Application[None] = Application(
            Layout(HSplit([body, below])),
            key_bindings=self._keys(),
            color_depth=color_depth(console),
            full_screen=True,
        )

    def run(self) -> None:
        """Let the user look around until they leave."""
        self._app.run()

    def _visible_part(self) -> StyleAndTextTuples:
        """Return the part of the view that the terminal has room for; half a character is blank."""
        size, first = self._app.output.get_size(), self._pinned_rows
        begin = self._pinned_columns + self._column
        below = self._lines[first + self._row : self._row + max(first, size.rows - 1)]
        fragments: StyleAndTextTuples = []
        for line in [*self._lines[:first], *below]:
            end = 0
            for style, character, *_rest in explode_text_fragments(line):
                start, end = end, end + get_cwidth(character)
                if end <= self._pinned_columns or (
                    begin <= start and end <= self._column + size.columns
                ):
                    fragments.append((style, character))
                elif start < begin < end:
                    fragments.append(("", " "))
            fragments.append(("", "\n"))
        return fragments

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        moves = {"left": (0, -8), "right": (0, 8), "up": (-1, 0), "down": (1, 0)}
        for name, (down, right) in moves.items():
            keys.add(name)(lambda _event, down=down, right=right: self._move(down, right))
        keys.add("pageup")(lambda _event: self._move(-self._page, 0))
        keys.add("pagedown")(lambda _event: self._move(self._page, 0))
        keys.add("home")(lambda _event: self._move(0, -self._columns))
        keys.add("end")(lambda _event: self._move(0, self._columns))
        for name in ("q", "c-c", "c-d", "escape", "enter"):
            keys.add(name)(_exit)
        keys.add("c-z")(suspend)
        return keys

    @property
    def _page(self) -> int:
        return max(1, self._app.output.get_size().rows - 2)

    def _move(self, down: int, right: int) -> None:
        columns = self._app.output.get_size().columns
        self._row = min(max(self._row + down, 0), max(0, len(self._lines) - self._page - 1))
        self._column = min(max(self._column + right, 0), max(0, self._columns - columns))


def _exit(event: KeyPressEvent) -> None:
    event.app.exit()
