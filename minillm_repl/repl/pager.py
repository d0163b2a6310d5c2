"""The pager of a view: it is scrolled and searched full-screen."""

from itertools import chain

from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import (
    StyleAndTextTuples,
    fragment_list_to_text,
    fragment_list_width,
    split_lines,
    to_formatted_text,
)
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import HSplit, Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.utils import get_cwidth
from rich.console import Console, RenderableType

from minillm_repl.language import _
from minillm_repl.repl.keyboard import color_depth, render_ansi, suspend
from minillm_repl.safetext import graphemes, safe_line, strip_joiners

_MOVES = {  # rows down, columns right
    "left": (0, -8), "right": (0, 8), "up": (-1, 0), "down": (1, 0), "k": (-1, 0), "j": (1, 0),
}  # fmt: skip
_FOUND = " reverse"  # style of what was searched


class Pager:
    """A view that is scrolled; its first rows and columns, `pinned` many, stay where they are."""

    def __init__(
        self, view: RenderableType, width: int, console: Console, pinned: tuple[int, int] = (0, 0)
    ) -> None:
        self._pinned_rows, self._pinned_columns = pinned
        self._lines = [*split_lines(to_formatted_text(render_ansi([view], width, console)))]
        self._texts = [fragment_list_to_text(line).lower() for line in self._lines]
        self._columns = max(map(fragment_list_width, self._lines))
        self._row = self._column = 0  # of the first cell that is shown beside what is pinned
        self._typed: str | None = None  # a search that is being typed
        self._wanted = ""  # what was searched last
        self._found_row: int | None = None
        self._message = ""
        body = Window(FormattedTextControl(self._visible_part, focusable=True, show_cursor=False))
        below = Window(FormattedTextControl(self._status), height=1)
        self._app: Application[None] = Application(
            Layout(HSplit([body, below])),
            key_bindings=self._keys(),
            color_depth=color_depth(console),
            full_screen=True,  # the alternate screen: afterwards all is as it was before
        )

    def run(self) -> None:
        """Let the user look around until they leave."""
        self._app.run()

    # -- what is shown

    def _visible_part(self) -> StyleAndTextTuples:
        """Return the part of the view that the terminal has room for; half a character is blank."""
        size, first = self._app.output.get_size(), self._pinned_rows
        begin = self._pinned_columns + self._column
        below = range(
            first + self._row, min(len(self._lines), self._row + max(first, size.rows - 1))
        )
        fragments: StyleAndTextTuples = []
        for row in chain(range(min(first, len(self._lines))), below):
            end = 0
            for style, character in self._marked(row):
                start, end = end, end + get_cwidth(character)
                if end <= self._pinned_columns or (
                    begin <= start and end <= self._column + size.columns
                ):
                    fragments.append((style, character))
                elif start < begin < end:
                    fragments.append(("", " "))
            fragments.append(("", "\n"))
        return fragments

    def _marked(self, row: int) -> list[tuple[str, str]]:
        """Return the characters of a row; those that were searched stand out."""
        characters = [(each[0], each[1]) for each in explode_text_fragments(self._lines[row])]
        place = self._texts[row].find(self._wanted) if self._wanted else -1
        while place >= 0:
            for at in range(place, min(place + len(self._wanted), len(characters))):
                characters[at] = (characters[at][0] + _FOUND, characters[at][1])
            place = self._texts[row].find(self._wanted, place + len(self._wanted))
        return characters

    def _status(self) -> StyleAndTextTuples:
        if self._typed is not None:
            return [("", f"/{strip_joiners(safe_line(self._typed))}▏")]
        rows = len(self._lines) - self._pinned_rows
        where = _(
            "rows {first}-{last} of {all}",
            first=min(self._row + 1, rows),
            last=min(self._row + self._page + 1 - self._pinned_rows, rows),
            all=rows,
        )
        keys = _("q leaves · ← → ↑ ↓ Page Up/Down Home End · g G ends · / n N search")
        return [("class:help", " · ".join([self._message or where, keys]))]

    # -- what keys do

    def _keys(self) -> KeyBindings:
        keys, typing = KeyBindings(), Condition(lambda: self._typed is not None)
        for name, (down, right) in _MOVES.items():
            keys.add(name, filter=~typing)(
                lambda _event, down=down, right=right: self._move(down, right)
            )
        ends = {"g": -len(self._lines), "G": len(self._lines)}
        for name, down in ends.items():
            keys.add(name, filter=~typing)(lambda _event, down=down: self._move(down, 0))
        for name in ("pageup", "b"):
            keys.add(name, filter=~typing)(lambda _event: self._move(-self._page, 0))
        for name in ("pagedown", " "):
            keys.add(name, filter=~typing)(lambda _event: self._move(self._page, 0))
        keys.add("home", filter=~typing)(lambda _event: self._move(0, -self._columns))
        keys.add("end", filter=~typing)(lambda _event: self._move(0, self._columns))
        for name in ("q", "c-c", "c-d", "escape", "enter"):
            keys.add(name, filter=~typing)(_exit)
        keys.add("c-z")(suspend)
        self._add_search_keys(keys, typing)
        return keys

    def _add_search_keys(self, keys: KeyBindings, typing: Condition) -> None:
        keys.add("/", filter=~typing)(lambda _event: self._begin_search())
        keys.add("n", filter=~typing)(lambda _event: self._find_next(1))
        keys.add("N", filter=~typing)(lambda _event: self._find_next(-1))
        for name in ("<any>", Keys.BracketedPaste):
            keys.add(name, filter=typing)(self._type)
        keys.add("backspace", filter=typing)(lambda _event: self._erase())
        keys.add("enter", filter=typing)(lambda _event: self._search())
        for name in ("escape", "c-c"):
            keys.add(name, filter=typing)(lambda _event: self._cancel_search())

    @property
    def _page(self) -> int:
        return max(1, self._app.output.get_size().rows - 2)  # one row is help, one is seen again

    def _move(self, down: int, right: int) -> None:
        columns = self._app.output.get_size().columns
        self._row = min(max(self._row + down, 0), max(0, len(self._lines) - self._page - 1))
        self._column = min(max(self._column + right, 0), max(0, self._columns - columns))
        self._message = ""

    # -- search

    def _begin_search(self) -> None:
        self._typed, self._message = "", ""

    def _cancel_search(self) -> None:
        self._typed = None

    def _type(self, event: KeyPressEvent) -> None:
        self._typed = (self._typed or "") + "".join(filter(str.isprintable, event.data))

    def _erase(self) -> None:
        self._typed = "".join([*graphemes(self._typed)][:-1]) if self._typed else None

    def _search(self) -> None:
        """Find what was typed, from the first row that is shown on; nothing repeats the last."""
        typed, self._typed = (self._typed or "").lower(), None
        if typed:
            self._wanted, self._found_row = typed, self._row + self._pinned_rows - 1
        self._find_next(1)

    def _find_next(self, step: int) -> None:
        """Show the next row, or the one before, that has what was searched; after the last, the
        first.
        """
        if not self._wanted:
            return
        count = len(self._texts)
        start = self._found_row if self._found_row is not None else self._row
        rows = ((start + step * each) % count for each in range(1, count + 1))
        row = next((each for each in rows if self._wanted in self._texts[each]), None)
        if row is None:
            self._message = _("{text} is not here", text=safe_line(self._wanted[:30]))
            return
        self._found_row = row
        if row >= self._pinned_rows:
            self._move(row - self._pinned_rows - self._row, 0)
        self._show_column(row)

    def _show_column(self, row: int) -> None:
        """Scroll sideways until what was found in a row can be seen."""
        place = self._texts[row].index(self._wanted)
        begin = get_cwidth(self._texts[row][:place])
        end = begin + get_cwidth(self._wanted)
        columns = self._app.output.get_size().columns
        if begin < self._pinned_columns + self._column or end > self._column + columns:
            self._column = 0
            self._move(0, begin - self._pinned_columns if end > columns else 0)


def _exit(event: KeyPressEvent) -> None:
    event.app.exit()
