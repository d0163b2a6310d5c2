"""How lessons are drawn: Markdown with live values, questions, the list of lessons."""

import re
from collections.abc import Callable, Iterable, Sequence

from markdown_it.token import Token as MarkdownToken
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from minillm_repl.language import _
from minillm_repl.lessons import Lesson
from minillm_repl.lessons.progress import LessonProgress
from minillm_repl.render.console import FIGURES, GOOD, MODEL, POSITIVE, TITLE, WARNING
from minillm_repl.render.tables import plain_table

_MIN_SUMMARY_WIDTH = 110  # cells of a terminal that has room for the lessons' subjects
_MAX_WIDTH = 84  # cells: longer lines are hard to read
# `{heads}`, `{token.-1}` or `{previous.head}`: a name, maybe with an index or a field; of `{p.좋}`,
# the field is a token.
PLACEHOLDER = re.compile(r"\{([a-z_]+(?:\.-?[a-z0-9]+)?|p\.[^{}\s]+)\}")
# Rich's own Markdown styles set backgrounds; these are styles of the palette only.
_THEME = Theme(
    {
        "markdown.code": POSITIVE,
        "markdown.code_block": POSITIVE,
        "markdown.strong": "bold",
        "markdown.em": "italic",
        "markdown.item.bullet": FIGURES,
        "markdown.item.number": FIGURES,
        "markdown.block_quote": FIGURES,
        "markdown.link": "underline",
        "markdown.link_url": "underline",
        "markdown.hr": FIGURES,
        "markdown.h1": TITLE,
        "markdown.h2": TITLE,
        "markdown.h3": TITLE,
        "markdown.table.border": FIGURES,
        "markdown.table.header": FIGURES,
    }
)

PlaceholderValue = Callable[[str], str]
"""Returns what a placeholder stands for. Raises UserError if there is no such thing."""


class _PlainHeading(Heading):
    """A heading that is aligned left."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Markdown(Markdown):
    elements = {**Markdown.elements, "heading_open": _PlainHeading}  # noqa: RUF012 - rich's own way


class LessonMarkdown:
    """Markdown whose placeholders are filled after it was parsed, so that no value is taken for
    markup.
    """

    def __init__(self, markdown: str, value: PlaceholderValue) -> None:
        # What a token contains must not become a heading, a list or a code block.
        # `ansi_dark` has the sixteen named colours only, as the palette has.
        self._markdown = _Markdown(markdown, hyperlinks=False, code_theme="ansi_dark")
        for token in self._markdown.parsed:
            fill_tokens(token, value)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with console.use_theme(_THEME):
            yield from console.render(
                self._markdown, options.update(width=min(options.max_width, _MAX_WIDTH))
            )


class PrefixedMarkdown:
    """Markdown with a sign before its first line; the other lines are indented."""

    def __init__(self, lead: str, markdown: str, value: PlaceholderValue) -> None:
        self._lead, self._prose = lead, LessonMarkdown(markdown, value)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = cell_len(self._lead)
        lines = console.render_lines(
            self._prose, options.update(width=options.max_width - indent), pad=False
        )
        for place, line in enumerate(lines):
            yield Segment(self._lead if place == 0 else " " * indent, Style(bold=True))
            yield from line
            yield Segment.line()


def numbered_answers(texts: Sequence[str], value: PlaceholderValue) -> Group:
    """Return the numbered answers of a question; each is Markdown."""
    return Group(
        *(PrefixedMarkdown(f" {number}  ", text, value) for number, text in enumerate(texts, 1))
    )


def fill_placeholders(text: str, value: PlaceholderValue) -> str:
    """Return a text with values in place of its placeholders."""
    return PLACEHOLDER.sub(lambda found: value(found[1]), text)


def unquoted(text: str) -> str:
    """Return a text without the quotes that keep a space at its end."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def lesson_title(lesson: Lesson) -> Text:
    """Return the title of a lesson."""
    time = f"  {_minutes(lesson)} · {class_hour(lesson)}\n"
    goals = "".join(f"\n  · {goal}" for goal in lesson.goals)
    return Text.assemble(
        (f"{lesson.number}. {lesson.title}", TITLE),
        (f"{time}{lesson.summary}\n", FIGURES),
        (_("after this lesson"), FIGURES),
        f"{goals}\n",
    )


def terms_table(lesson: Lesson) -> Table:
    """Return the words that a lesson has taught, and what they mean."""
    table = plain_table(_("terms of this lesson"), "", wrap=(1,))
    for term in lesson.terms:
        table.add_row(Text(term.word, TITLE), Text(term.meaning))
    return table


def verdict(right: bool | None, answer: str = "") -> Text:
    """Return the line after an answer: whether it was right, and the right one.

    `right` is None if no answer was given. Without `answer`, what follows tells the right one.
    """
    if right is None:
        line = Text("→", FIGURES)
    else:
        line = Text("✓ " + _("correct"), GOOD) if right else Text("✗ " + _("not quite"), WARNING)
    if answer and not right:
        line.append("  " + _("answer:"), FIGURES)
    return line.append(f"  {answer}", MODEL) if answer else line


def lessons_table(lessons: Iterable[tuple[Lesson, LessonProgress | None]], width: int) -> Table:
    """Return the lessons with their progress and, where there is room, their subject."""
    table = plain_table(
        "", _("lesson"), "", _("time"), *([""] if width >= _MIN_SUMMARY_WIDTH else [])
    )
    for lesson, reached in lessons:
        table.add_row(
            str(lesson.number),
            Text(lesson.title, TITLE),
            progress_text(lesson, reached),
            _minutes(lesson),
            *([Text(lesson.summary, FIGURES)] if width >= _MIN_SUMMARY_WIDTH else []),
        )
    return table


def progress_text(lesson: Lesson, lesson_progress: LessonProgress | None) -> Text:
    """Return the progress in a lesson: done, `3/9`, or nothing."""
    if lesson_progress is None:
        return Text("–", FIGURES)
    if lesson_progress.done and not lesson_progress.screen:
        return Text("✓ " + _("done"), GOOD)
    return Text(
        f"{lesson_progress.screen + 1}/{len(lesson.screens)}"
        + (" ✓" if lesson_progress.done else ""),
        POSITIVE,
    )


def class_hour(lesson: Lesson) -> str:
    """Return which class hour a lesson belongs to."""
    return _("class hour {n}", n=lesson.hour) if lesson.hour else _("extra")


def _minutes(lesson: Lesson) -> str:
    return _("{n} min", n=lesson.minutes)


def fill_tokens(token: MarkdownToken, value: PlaceholderValue) -> None:
    """Put values in place of the placeholders of parsed Markdown, where they stay plain text."""
    token.content = fill_placeholders(token.content, value)
    # Rich draws running text from the children; a code block has no children, only content.
    for child in token.children or ():
        fill_tokens(child, value)
