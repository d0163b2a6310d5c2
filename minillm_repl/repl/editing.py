"""The line that is typed: its history and its characters.

A character may have several code points: it is shown whole, and keys move over it. Wide letters
take their place in a row.
"""

import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import (
    StyleAndTextTuples,
    fragment_list_to_text,
    to_formatted_text,
)
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, Layout, UIContent
from prompt_toolkit.layout.controls import GetLinePrefixCallable
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.utils import get_cwidth

from minillm_repl.safetext import graphemes, safe, strip_joiners


def open_history(path: Path | None, is_private: Callable[[str], bool]) -> History:
    """Return the history of a file that only its owner may read; without such a file, one in
    memory. A line that is private is kept in neither.
    """
    return DiscreetHistory(_open_history(path), is_private)


def _open_history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made private before a line is written, and without waiting for the reader of a pipe.
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0), 0o600
        )
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return InMemoryHistory()  # /dev/null, say: nothing to read, and not ours to change
            if hasattr(os, "geteuid") and status.st_uid == os.geteuid():
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return InMemoryHistory()  # a home that cannot be written must not keep anyone from typing
    return SafeFileHistory(str(path))


class DiscreetHistory(History):
    """A history without lines that are private: ↑ does not bring them back, nor does a file."""

    def __init__(self, kept: History, is_private: Callable[[str], bool]) -> None:
        super().__init__()
        self._kept, self._is_private = kept, is_private

    def append_string(self, string: str) -> None:
        """Add a line that is not private."""
        if not self._is_private(string):
            super().append_string(string)

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines that were kept, the newest first."""
        return self._kept.load_history_strings()

    def store_string(self, string: str) -> None:
        """Keep a line."""
        self._kept.store_string(string)


class SafeFileHistory(FileHistory):
    """A history file that is safe to print, and that tolerates a full disk."""

    def store_string(self, string: str) -> None:
        """Append a line with unsafe characters replaced; one that cannot be written is kept in
        memory.
        """
        with suppress(OSError):
            super().store_string(safe(string))


class SafeClusterProcessor(Processor):
    """Shows `�` for what could steer a terminal and prompt_toolkit lets through, as in file names.

    Clusters are shown in their parts, whose cells prompt_toolkit counts: a terminal may draw a
    family as one character or as three.
    """

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Replace each cluster, and return where each character of the line went."""
        fragments = explode_text_fragments(transformation_input.fragments)
        shown: StyleAndTextTuples = []
        offsets, offset = [], 0  # of each character: in the line that is shown
        for cluster in graphemes("".join(text for _style, text, *_handler in fragments)):
            offsets += [offset] * len(cluster)
            text = "".join(map(_visible, strip_joiners(cluster)))
            shown.append((fragments[len(offsets) - len(cluster)][0], text))
            offset += len(text)
        offsets.append(offset)  # of the end, where the cursor is while one types
        return Transformation(
            shown,
            lambda place: (
                offsets[place] if place < len(offsets) else offset + place - len(offsets) + 1
            ),
            lambda place: bisect_left(offsets, place),
        )


def _visible(character: str) -> str:
    # prompt_toolkit itself shows controls below U+00A0, as ^[ or <80>.
    return character if character < "\u00a0" or safe(character) == character else "\ufffd"


def cluster_key_bindings() -> KeyBindings:
    """Return the keys that move over, or delete, what a reader takes for one character."""
    keys = KeyBindings()

    def length_before(event: KeyPressEvent) -> int:
        text = event.current_buffer.document.current_line_before_cursor
        return len([*graphemes(text)][-1]) if text else 1  # 1 crosses the end of a line

    def length_after(event: KeyPressEvent) -> int:
        text = event.current_buffer.document.current_line_after_cursor
        return len(next(graphemes(text))) if text else 1

    for name in ("left", "c-b"):
        keys.add(name)(
            lambda event: event.current_buffer.cursor_left(event.arg * length_before(event))
        )
    for name in ("right", "c-f"):
        keys.add(name)(
            lambda event: (
                _take_suggestion(event.current_buffer)
                or event.current_buffer.cursor_right(event.arg * length_after(event))
            )
        )
    keys.add("backspace")(
        lambda event: _delete_clusters(
            event, length_before(event), event.current_buffer.delete_before_cursor
        )
    )
    keys.add("delete")(
        lambda event: _delete_clusters(event, length_after(event), event.current_buffer.delete)
    )
    return keys


def _take_suggestion(buffer: Buffer) -> bool:
    """Type the rest of the line that is suggested in grey; tell whether there is one."""
    if buffer.suggestion is None or not buffer.document.is_cursor_at_the_end:
        return False
    text = buffer.suggestion.text
    buffer.insert_text(text)
    return bool(text)


def _delete_clusters(event: KeyPressEvent, count: int, delete: Callable[[int], str]) -> None:
    if not delete(event.arg * count):
        event.app.output.bell()


class WrappedContent(UIContent):
    """Content whose lines are as high as they are drawn.

    prompt_toolkit divides the cells of a line by the width, but draws a wide letter that does not
    fit in the next row. So the end of a long Korean line, where the cursor is, was out of sight.
    """

    def get_height_for_line(
        self,
        lineno: int,
        width: int,
        get_line_prefix: GetLinePrefixCallable | None,
        slice_stop: int | None = None,
    ) -> int:
        """Return the number of rows of a line, or of what stands before `slice_stop`."""
        line = fragment_list_to_text(self.get_line(lineno))[:slice_stop]
        cells = get_cwidth(line)
        if cells == len(line) or width < 2:  # no wide letters, or no room for any
            return super().get_height_for_line(lineno, width, get_line_prefix, slice_stop)

        def begin(wraps: int) -> int:
            prefix = to_formatted_text(get_line_prefix(lineno, wraps)) if get_line_prefix else []
            return get_cwidth(fragment_list_to_text(prefix))

        rows, place = 1, begin(0)
        for wide in map(get_cwidth, line):
            if place + wide > width:  # a wide letter never straddles two rows
                rows, place = rows + 1, begin(rows)
            place += wide
        return rows


def use_drawn_heights(layout: Layout) -> None:
    """Make every line that is typed in a layout as high as it is drawn."""
    for control in layout.find_all_controls():
        if isinstance(control, BufferControl):
            _use_drawn_heights(control)


def _use_drawn_heights(control: BufferControl) -> None:
    # prompt_toolkit has no hook for a line's height: the method of this one control is replaced.
    create = control.create_content

    def create_content(width: int, height: int, preview_search: bool = False) -> UIContent:
        made = create(width, height, preview_search)
        return WrappedContent(
            made.get_line,
            made.line_count,
            made.cursor_position,
            made.menu_position,
            made.show_cursor,
        )

    control.create_content = create_content  # type: ignore[method-assign]
