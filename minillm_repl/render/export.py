"""Views as files: SVG, HTML, plain text. A view replaces only a file that a view made, unless told
to.
"""

import re
from collections.abc import Callable, Iterator
from html import escape, unescape
from io import StringIO
from pathlib import Path

from rich.cells import cell_len, chop_cells
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text
from rich.tree import Tree

from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.render.drawing import MAX_PROSE_WIDTH, UNLIMITED_WIDTH
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.files import open_regular

# What has every block character one cell wide comes first, then what has Hangul.
_FONTS = (
    "'DejaVu Sans Mono', Menlo, 'Cascadia Mono', Consolas, 'Noto Sans Mono CJK KR', 'Noto "
    "Sans CJK KR',"
    " 'Apple SD Gothic Neo', 'Malgun Gothic', monospace"
)
# Groups: the start of rich's <text>, its length, the rest of the tag, the text, the end tag.
_TEXT = re.compile(r'(<text [^>]*?textLength=")([0-9.]+)("[^>]*)>([^<]*)(</text>)')
_BEYOND_ASCII = re.compile("[^\x00-\x7f]")

# Rich fills both templates with str.format, so CSS has its braces twice.
_SVG = """<svg class="terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<!-- made by minillm-repl -->
<style>
.{unique_id}-matrix {{ font-family: FONTS; font-size: {char_height}px; \
line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: FONTS; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
""".replace("FONTS", _FONTS)

_HTML = """<!DOCTYPE html>
<html lang="LANGUAGE">
<head>
<!-- made by minillm-repl -->
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
{stylesheet}
body {{ color: {foreground}; background-color: {background}; }}
pre {{ font-family: FONTS; line-height: 1.25; }}
i {{ display: inline-block; font-style: normal; text-align: center; width: 1ch; }}
i.wide {{ width: 2ch; }}
</style>
</head>
<body>
<pre><code style="font-family:inherit">{code}</code></pre>
</body>
</html>
""".replace("FONTS", _FONTS)


Drawing = Callable[[Console], object]
"""Prints something on the console that it is given."""


def as_svg(drawing: Drawing, width: int, title: str) -> str:
    """Return what is drawn as one SVG picture, `width` cells wide, with nothing from elsewhere."""
    picture = _recorded(drawing, width).export_svg(
        title=title, theme=SVG_EXPORT_THEME, code_format=_SVG
    )
    # A browser without these fonts would give Hangul and blocks another width.
    return _TEXT.sub(_as_long_as_its_cells, picture)


def as_html(drawing: Drawing, width: int, title: str) -> str:
    """Return what is drawn as one page; it asks for nothing from elsewhere."""
    # The title becomes part of a format string: its own braces are doubled.
    page = _HTML.replace("LANGUAGE", current_language())
    page = page.replace("TITLE", escape(title).replace("{", "{{").replace("}", "}}"))
    head, pre, code = (
        _recorded(drawing, width)
        .export_html(theme=SVG_EXPORT_THEME, code_format=page)
        # Only the text of the terminal gets boxes, not the head of the page.
        .partition("<pre>")
    )
    return head + pre + _BEYOND_ASCII.sub(_as_wide_as_its_cells, code)


def notebook_html(picture: RenderableType, width: int) -> str:
    """Return a picture as one HTML element with its styles inside; text in it is escaped."""
    element = (
        '<pre style="color: {foreground}; background-color: {background}; padding: 0.5em; '
        f'line-height: 1.25; font-family: {_FONTS}">'
        "<code>{code}</code></pre>"
    )
    recorder = _recorded(lambda console: console.print(picture), width)
    html = recorder.export_html(theme=SVG_EXPORT_THEME, code_format=element, inline_styles=True)
    return _BEYOND_ASCII.sub(_as_wide_as_its_cells_inline, html)


def plain_text(picture: RenderableType, width: int) -> str:
    """Return a picture as plain text."""
    return _recorded(lambda console: console.print(picture), width).export_text()


def as_text(drawing: Drawing, width: int, title: str) -> str:
    """Return what is drawn as plain text, below a line with the title."""
    return f"[{title}]\n\n{_recorded(drawing, width).export_text()}"


FORMATS: dict[str, Callable[[Drawing, int, str], str]] = {
    ".svg": as_svg,
    ".html": as_html,
    ".txt": as_text,
}


def whole_width(view: RenderableType) -> int:
    """Return how many cells a view needs that was drawn as wide as `WHOLE`: words are wrapped,
    pictures are not.
    """
    if isinstance(view, Group):
        return max(map(whole_width, view.renderables), default=1)
    if isinstance(view, Columns | Tree):
        return MAX_PROSE_WIDTH  # they are wrapped as words are
    console = _console(UNLIMITED_WIDTH)
    needed = Measurement.get(console, console.options, view).maximum
    return min(needed, MAX_PROSE_WIDTH) if isinstance(view, Text) and not view.no_wrap else needed


def _recorded(drawing: Drawing, width: int) -> Console:
    """Return a console of what a terminal of this width shows, wide and narrow characters apart."""
    terminal = _console(width)
    drawing(terminal)
    assert isinstance(terminal.file, StringIO)
    # Drawn twice: a terminal decides about lines first, then each line is recorded in pieces.
    recorder = _console(width)
    recorder.record = True
    for line in Text.from_ansi(terminal.file.getvalue()).split("\n", allow_blank=True):
        recorder.print(_InRuns(line, width), end="")
    return recorder


def _console(width: int) -> Console:
    return Console(
        force_jupyter=False,  # else rich shows in a notebook what is only recorded
        file=StringIO(),
        width=width,
        # A StringIO is no terminal, and would get no colours.
        force_terminal=True,
        color_system="standard",
        markup=False,
        highlight=False,
        emoji=False,
    )


class _InRuns:
    """A line as a terminal shows it: cut where full, and in pieces of equally wide characters."""

    def __init__(self, line: Text, width: int) -> None:
        self._line, self._width = line, width

    def __rich_console__(self, console: Console, _options: ConsoleOptions) -> RenderResult:
        used = 0
        for segment in self._line.render(console):
            for text in _runs(segment.text):
                for piece in (
                    chop_cells(text, self._width) if used + cell_len(text) > self._width else [text]
                ):
                    if used + cell_len(piece) > self._width:
                        yield Segment.line()
                        used = 0
                    used += cell_len(piece)
                    yield Segment(piece, segment.style)
        yield Segment.line()


def _runs(text: str) -> Iterator[str]:
    """Yield pieces of a text, each most likely of one font, its characters equally wide.

    Those without a width, which change the one before them, stay with it.
    """
    run, kind = "", (False, 0)  # whether it is ASCII, and the cells of each of its characters
    for character in text:
        cells = cell_len(character)
        if cells and run and kind != (character.isascii(), cells):
            yield run
            run = ""
        if cells:
            kind = (character.isascii(), cells)
        run += character
    if run:
        yield run


def _as_long_as_its_cells(found: re.Match[str]) -> str:
    """Return a piece of rich's SVG, which sets lengths by characters, as long as its cells,
    whatever the font.
    """
    before, length, between, text, after = found.groups()
    plain = unescape(text)
    # Rich's length is characters × cell width; a Hangul syllable has two cells.
    cells = float(length) / max(len(plain), 1) * cell_len(plain)
    return f'{before}{cells:g}{between} lengthAdjust="spacingAndGlyphs">{text}{after}'


def _as_wide_as_its_cells_inline(found: re.Match[str]) -> str:
    """Return a character of a notebook in a box as wide as its cells, without a style sheet."""
    cells = cell_len(found[0])
    style = f"display: inline-block; font-style: normal; text-align: center; width: {cells}ch"
    return f'<i style="{style}">{found[0]}</i>' if cells else found[0]


def _as_wide_as_its_cells(found: re.Match[str]) -> str:
    """Return a character for the page in a box as wide as its cells; without width, as it is."""
    wide = cell_len(found[0])
    return f"<i{' class=wide' if wide == 2 else ''}>{found[0]}</i>" if wide else found[0]


_VIEW_HEADERS = re.compile(
    rb'\{"view": "'
    rb'|<svg class="terminal"[^>]*>\s*<!-- made by minillm-repl -->'
    rb"|<!DOCTYPE html>\s*<html[^>]*>\s*<head>\s*<!-- made by minillm-repl -->"
    rb"|<!-- made by minillm-repl -->"
    rb"|\[minillm-repl( \xc2\xb7 [^\n]*)?\]\r?\n"
)
"""How the files begin that views and `:export` write (above, and in json_lines.py)."""

_HEADER_BYTES = 1000  # bytes: enough for each of these


def check_overwritable(path: Path, *, overwrite: bool) -> None:
    """Raise UserError if the file at `path` was not made by a view, unless `overwrite`."""
    # An empty file, such as one of mktemp, has nothing to lose.
    if overwrite or not path.is_file() or not path.stat().st_size:
        return
    with open_regular(path) as file:
        head = file.read(_HEADER_BYTES)
    if _VIEW_HEADERS.match(head):
        return
    raise UserError(
        _(
            "{path} exists and was not made by a view: `--overwrite` replaces it, or use "
            "another name",
            path=safe_line(str(path)),
        )
    )


def write_view(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a view to `path`. Raises UserError, also where `check_overwritable` does."""
    check_overwritable(path, overwrite=overwrite)
    write_atomically(path, data)
