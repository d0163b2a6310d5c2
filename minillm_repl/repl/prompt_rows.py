"""How many rows a typed line takes: as many as are drawn, also where its letters are wide."""

from prompt_toolkit.formatted_text import fragment_list_to_text, to_formatted_text
from prompt_toolkit.layout import BufferControl, Layout, UIContent
from prompt_toolkit.layout.controls import GetLinePrefixCallable
from prompt_toolkit.utils import get_cwidth


class WrappedContent(UIContent):
    """Content whose lines are as high as they are drawn.

    prompt_toolkit divides the cells of a line by the width, but draws a wide letter that does not
    fit in the next row: so the end of a long Korean line, where the cursor is, was below what is
    shown.
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
            if place + wide > width:
                rows, place = rows + 1, begin(rows)
            place += wide
        return rows


def use_drawn_heights(layout: Layout) -> None:
    """Let all that is typed in a layout be as high as it is drawn."""
    for control in layout.find_all_controls():
        if isinstance(control, BufferControl):
            _use_drawn_heights(control)


def _use_drawn_heights(control: BufferControl) -> None:
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
