"""Draws the program's own code."""

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.text import Text

from minillm_repl.insight.views.source import SourcesView, SourceView
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, title
from minillm_repl.render.tables import plain_table

_SHAPE = r"(?<=  # ).*\(\d+, .*"


def source_picture(view: SourceView, width: int) -> RenderableType:
    """Return the code in colours, the shapes in its comments in one that stands out."""
    code = Syntax(
        "", "python", theme="ansi_dark", background_color="default", word_wrap=True
    ).highlight(view.code)
    code.rstrip()
    code.no_wrap = width >= UNLIMITED_WIDTH
    if view.sized:
        code.highlight_regex(_SHAPE, f"not dim {MODEL}")
    note = [Text(_("# (…): tensor shapes for the text so far"), FIGURES)] if view.sized else []
    place = _("{file}, line {line}", file=f"minillm_repl/{view.file}", line=view.line)
    return Group(title(view.part, place), code, *note)


def sources_picture(view: SourcesView, _width: int) -> RenderableType:
    """Return a row for each part."""
    table = plain_table(_("part"), _("description"), _("file"), _("lines"))
    table.columns[3].justify = "right"
    for place in (0, 2):
        table.columns[place].no_wrap = True
    for each in view.parts:
        count = each.code.count("\n") + 1
        summary = Text(each.summary, no_wrap=True, overflow="ellipsis")
        table.add_row(Text(each.part, TITLE), summary, Text(each.file, FIGURES), str(count))
    example = view.parts[-1].part
    return Group(
        title(_("source code of the program"), _("in {folder}", folder="minillm_repl/")),
        table,
        Text(_("`:source {part}` shows one of them", part=example), FIGURES),
    )
