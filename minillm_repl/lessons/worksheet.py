"""A lesson on paper: a worksheet without answers, one with a learner's own, and the answer key.

All screens are on it, however many sittings the lesson took: they come from the lesson's file, and
their figures from the open model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html import escape
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from markdown_it import MarkdownIt

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _, current_language
from minillm_repl.lessons import (
    Ask,
    Block,
    Choose,
    Claim,
    Exercise,
    Explain,
    Guess,
    Lesson,
    LessonScreen,
    Order,
    Prose,
    Show,
    Try,
    When,
    find_exercises,
)
from minillm_repl.lessons.claims import claim_text, is_true
from minillm_repl.lessons.course import find_lesson, learner_progress
from minillm_repl.lessons.draw import PLACEHOLDER, class_hour, fill_placeholders, fill_tokens
from minillm_repl.lessons.exercises import ExerciseSteps, InputRequest, is_right, shuffled_steps
from minillm_repl.lessons.progress import LessonAnswer, Progress
from minillm_repl.lessons.run import LessonRunner, run_unattended
from minillm_repl.lessons.values import LessonValues
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.render.export import check_overwritable, write_view
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe, safe_line

Kind = Literal["worksheet", "answers", "key"]

_BLANK = "_____"
_STEPS = re.compile(r"steps=\d+")
_LINES = {Ask: 1, Choose: 1, Order: 1, Explain: 4, Guess: 1, Show: 1, Try: 2}  # to write on
# `html` off: a token that looks like a tag stays text.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("lheading")

# Black and dark grey on white and light grey: at least 7:1, also for who sees or prints weakly.
_PAGE = """<!DOCTYPE html>
<html lang="{language}">
<head>
<!-- made by minillm-repl -->
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
@page {{ size: A4; margin: 18mm 16mm; }}
:root {{ color-scheme: light; }}
body {{ max-width: 178mm; margin: 0 auto; padding: 4mm; color: #111111; background: #ffffff;
  font: 11pt/1.6 "Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "Apple SD Gothic Neo",
  sans-serif; word-break: keep-all; overflow-wrap: anywhere; }}
h1 {{ font-size: 17pt; margin: 0; }}
h2 {{ font-size: 13pt; margin: 7mm 0 1mm; break-after: avoid; }}
p, ul, ol, table, blockquote, pre {{ margin: 2mm 0; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #555555; padding: 1mm 2.5mm; text-align: left; }}
code, pre {{ font-family: "DejaVu Sans Mono", "Noto Sans Mono CJK KR", Consolas, monospace;
  font-size: 10pt; color: #111111; background: #f2f2f2; padding: 0 1mm; }}
pre {{ padding: 2mm; white-space: pre-wrap; }}
pre code {{ padding: 0; }}
blockquote {{ border-left: 1mm solid #555555; padding-left: 4mm; margin-left: 0; }}
.small {{ color: #444444; font-size: 9.5pt; }}
.box {{ border: 1px solid #555555; border-radius: 2mm; padding: 1mm 4mm; margin: 3mm 0;
  break-inside: avoid; }}
.line {{ border-bottom: 1px solid #555555; height: 8mm; margin: 0; }}
.answer {{ border-left: 1mm solid #111111; padding-left: 4mm; }}
ol.options {{ list-style: decimal; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def export_lesson(shell: Shell, path: Path, kind: Any, *, overwrite: bool) -> None:
    """Save the open lesson for a printer. Raises UserError."""
    if path.suffix.lower() != ".html":
        raise UsageError(_("a lesson on paper needs a file name that ends in .html"))
    runner = shell.line_handler
    number = runner.name.split()[-1] if isinstance(runner, LessonRunner) else ""
    if not number.isdecimal():  # no lesson, or a quiz
        raise UserError(_("no lesson is open: `:learn N` opens the one to print"))
    check_overwritable(path, overwrite=overwrite)  # now, not after the lesson has run
    with shell.screen.waiting(_("the lesson runs once, for its figures")):
        page = worksheet_page(shell, find_lesson(int(number)), kind, learner_progress(shell))
    write_view(path, page.encode("utf-8", "replace"), overwrite=overwrite)
    shell.screen.note(_("lesson saved to {path}", path=safe_line(str(path))))


def worksheet_page(shell: Shell, lesson: Lesson, kind: Kind, progress: Progress) -> str:
    """Return a lesson as one HTML page that prints on A4 and asks for nothing from elsewhere.

    The lesson runs on a copy of the session, so that figures are those of the open model; for a
    key with all its training, for a worksheet with one step of it. Raises UserError, and
    KeyboardInterrupt after Ctrl-C.
    """
    handler = shell.line_handler
    session = handler.outer_session if isinstance(handler, LessonRunner) else shell.session
    out = Transcript(file=StringIO(), width=84, markup=False, highlight=False, emoji=False)
    quiet = replace(shell, session=session, screen=Screen(out, out), line_handler=None)
    with TemporaryDirectory() as folder:
        sheet = _Sheet(quiet, lesson, kind, progress)
        runner = LessonRunner(
            shell=quiet,
            name=f"{current_language()} {lesson.number}",
            title=out.render_str(lesson.title),
            screen_count=len(lesson.screens),
            run_screen=sheet.run_screen,
            texts=lesson.texts,
            practice_path=Path(folder) / "practice.safetensors",
        )
        run_unattended(runner)
    title = f"{lesson.number}. {lesson.title}"
    figures = _("figures: of {model}", model=safe_line(shell.require_model().name))
    foot = f'<p class="small">minillm-repl · {escape(figures)}</p>'
    body = "\n".join((*_head(lesson, kind, progress, title), *sheet.parts, foot))
    return _PAGE.format(language=current_language(), title=escape(title), body=body)


def _head(lesson: Lesson, kind: Kind, progress: Progress, title: str) -> Iterator[str]:
    named = {"worksheet": _("worksheet"), "answers": _("my answers"), "key": _("answer key")}
    time = _("{n} min", n=lesson.minutes)
    yield f'<p class="small">{escape(f"{named[kind]} · {class_hour(lesson)} · {time}")}</p>'
    yield f"<h1>{escape(title)}</h1>"
    if kind != "key":
        name = safe_line(progress.student) if kind == "answers" else ""
        line = _("name: {name}  date: {date}", name=name or _BLANK * 3, date=_BLANK * 2)
        yield f"<p>{escape(line)}</p>"
    goals = _("after this lesson")
    yield f"<p><strong>{escape(goals)}</strong></p><ul>"
    yield from (f"<li>{escape(goal)}</li>" for goal in lesson.goals)
    yield "</ul><table>"
    for term in lesson.terms:
        yield f"<tr><th>{escape(term.word)}</th><td>{escape(term.meaning)}</td></tr>"
    yield "</table>"


@dataclass
class _Sheet:
    """What goes on the paper, screen by screen."""

    shell: Shell
    lesson: Lesson
    kind: Kind
    progress: Progress
    parts: list[str] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)  # of exercises in the progress file

    def run_screen(self, runner: LessonRunner, place: int) -> ExerciseSteps:
        """Write down a screen, and run its lines: later figures depend on them."""
        self.shell.session.conversation.clear()
        exercises = find_exercises(self.lesson.screens[place])
        for number, each in enumerate(exercises, 1):
            self._names[id(each)] = f"{runner.name}/{place + 1}.{number}"
        self._add_blocks(runner, self.lesson.screens[place])
        yield InputRequest("enter")
        return None

    def _add_blocks(self, runner: LessonRunner, blocks: LessonScreen) -> None:
        for block in blocks:
            if isinstance(block, When):
                if runner.lesson_values().holds(block.condition):
                    self._add_blocks(runner, block.blocks)
                continue
            values = runner.lesson_values()
            if not self._belongs(runner, block, values):
                continue
            self.parts.append(self._html(block, values))
            lines = {Show: "lines", Try: "do"}.get(type(block))
            if lines:
                done = getattr(block, lines)
                self._run(runner, (done,) if isinstance(done, str) else done)
                if self.kind == "key" and isinstance(block, Try):
                    done = self._markdown(block.done, runner.lesson_values())
                    self.parts.append(f'<div class="answer">{done}</div>')

    def _belongs(self, runner: LessonRunner, block: Block, values: LessonValues) -> bool:
        """Return whether a block is on the paper: no claim about a training of one step only."""
        if isinstance(block, Claim):
            return self.kind == "key" or not runner.has_trained
        return not isinstance(block, Exercise) or is_true(block, values)

    def _run(self, runner: LessonRunner, lines: tuple[str, ...]) -> None:
        for each in lines:
            line = fill_placeholders(each, runner.lesson_values().value)
            if self.kind != "key":  # no answer is on it that long training would change
                line = _STEPS.sub("steps=1", line)
            try:
                (self.shell.run_line if each.startswith(":") else self.shell.run_prompt)(line)
            except UserError:  # on the screen it would be said, and the lesson would go on
                continue

    def _html(self, block: Block, values: LessonValues) -> str:
        match block:
            case Prose():
                return self._markdown(block.markdown, values)
            case Claim():
                return self._markdown(*claim_text(block, values))
            case Show():
                return self._box(block, self._typed(block.lines, values))
            case Try():
                task = self._markdown(block.task, values)
                return self._box(block, task + self._typed((block.do,), values))
            case Guess():
                score = _("my bits, and those of the model:")
                return self._box(block, f"<p>{escape(score)}</p>")
        assert isinstance(block, Exercise)
        question = self._question(block, values)
        answer = self._answer(block, values)
        return self._box(block, question, answer)

    def _box(self, block: Block, html: str, answer: str = "") -> str:
        lines = '<p class="line"></p>' * (0 if self.kind == "key" else _LINES[type(block)])
        if answer:
            lines = f'<div class="answer">{answer}</div>'
        return f'<div class="box">{html}{lines}</div>'

    def _typed(self, lines: tuple[str, ...], values: LessonValues) -> str:
        shown = [self._text(line, values) for line in lines]
        code = "<br>".join(f"<code>{escape(line)}</code>" for line in shown)
        typed = _("type:")
        return f'<p><span class="small">{escape(typed)}</span> {code}</p>'

    def _question(self, block: Exercise, values: LessonValues) -> str:
        html = self._markdown(block.question, values)
        options: tuple[str, ...] = ()
        if isinstance(block, Choose):
            options = tuple(each.text for each in block.options)
        elif isinstance(block, Order):
            options = tuple(block.steps[each] for each in shuffled_steps(block))
        items = "".join(f"<li>{self._markdown(each, values)}</li>" for each in options)
        return html + (f'<ol class="options">{items}</ol>' if items else "")

    def _answer(self, block: Exercise, values: LessonValues) -> str:
        """Return what the key, or the learner, says to a question; empty for a worksheet."""
        if self.kind == "worksheet":
            return ""
        if self.kind == "answers":
            given = self.progress.answers.get(self._names[id(block)], LessonAnswer())
            text = {"right": "✓ ", "wrong": "✗ "}.get(given.verdict, "") + safe(given.given)
            line = f'<p>{escape(text)} <span class="small">{escape(given.touched[:10])}</span></p>'
            return line if given.given else ""
        match block:
            case Ask():
                text = f"**{block.answer.split(' | ')[0]}**\n\n{block.right}"
            case Choose():
                text = "\n".join(
                    f"{number}. {'✓' if is_right(option, values) else '✗'} {option.why}"
                    for number, option in enumerate(block.options, 1)
                )
            case Order():
                shuffled = shuffled_steps(block)
                order = " ".join(str(shuffled.index(n) + 1) for n in range(len(block.steps)))
                text = f"**{order}**\n\n{block.why}"
            case Explain():
                text = block.answer
        return self._markdown(text, values)

    def _markdown(self, markdown: str, values: LessonValues) -> str:
        tokens = _MARKDOWN.parse(markdown)
        for token in tokens:
            fill_tokens(token, lambda name: self._value(name, values))
        return str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))

    def _text(self, text: str, values: LessonValues) -> str:
        return safe_line(fill_placeholders(text, lambda name: self._value(name, values)))

    def _value(self, name: str, values: LessonValues) -> str:
        """Return a figure; a blank for one that the lesson asks for, unless answers may be seen."""
        asked = {
            found[1]
            for screen in self.lesson.screens
            for each in find_exercises(screen)
            if isinstance(each, Ask)
            for found in PLACEHOLDER.finditer(each.answer)
        }
        if name in ("practice", "skewed"):  # not the path that it has on this computer
            return f"{name}.txt"
        return _BLANK if name in asked and self.kind != "key" else values.value(name)
