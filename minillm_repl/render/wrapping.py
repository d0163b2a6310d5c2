"""Breaks running text between words, while it comes in pieces.

A terminal breaks a line in the middle of a word. A word that turns out to be too long for its line
is erased there and written again on the next one.
"""

import re
from collections.abc import Callable

from rich.cells import cell_len

from minillm_repl.safetext import graphemes

_TAB = 8  # cells
# Han and kana have no spaces between words: a line may break at each of them. Hangul has spaces.
_BREAKS_ANYWHERE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class WordWrapper:
    """Where the cursor is, and the word that it is in. `before` is what stands before the text."""

    def __init__(self, width: Callable[[], int], before: str = "") -> None:
        self._width, self._columns = width, width()
        self._column = 0  # cells left of the cursor
        self._word = ""  # what has been written since the last break, and can be erased
        for cluster in graphemes(before.rpartition("\n")[2]):
            cells = cell_len(cluster)
            # the terminal breaks what stands before, wherever the row ends
            self._column = cells if self._column + cells > self._columns else self._column + cells
        # The text goes on a word that is not ours to erase.
        self._is_movable = not before or before[-1].isspace()

    def feed(self, text: str) -> str:
        """Return what to write for more of the text, with the breaks and what they erase."""
        if self._columns != self._width():  # resized: who knows where the word is now
            self._columns, self._is_movable = self._width(), False
        return "".join(map(self._place, graphemes(text)))

    def _place(self, cluster: str) -> str:
        # The last column stays free: terminals differ in where the cursor is after it.
        limit = max(1, self._columns - 1)
        if cluster in ("\n", "\r\n"):
            self._begin_word(column=0)
            return "\n"
        if cluster.isspace():
            spaces = " " * (_TAB - self._column % _TAB if cluster == "\t" else cell_len(cluster))
            if self._column + len(spaces) > limit:  # the break takes its place
                self._begin_word(column=0)
                return "\n"
            self._begin_word(self._column + len(spaces))
            return spaces
        if _BREAKS_ANYWHERE.match(cluster):
            self._begin_word(self._column)
        moved = self._make_room(cell_len(cluster), limit)
        self._column += cell_len(cluster)
        self._word += cluster
        if "\u200d" in cluster:  # terminals do not agree on its cells
            self._is_movable = False
        return moved + cluster

    def _make_room(self, cells: int, limit: int) -> str:
        """Return what moves the cursor to where so many cells have room."""
        if self._column + cells <= limit:
            return ""
        word, size = self._word, cell_len(self._word)
        can_move = self._is_movable and 0 < size < self._column and size + cells <= limit
        self._begin_word(column=0)
        if not can_move:
            return "\n"
        self._word, self._column = word, size
        return f"\x1b[{size}D\x1b[K\n{word}"

    def _begin_word(self, column: int) -> None:
        self._word, self._column, self._is_movable = "", column, True
