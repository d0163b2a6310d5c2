"""`:learn`, `:quiz`, `:progress`."""

import re
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, spoken
from minillm_repl.lessons.blocks import Lesson
from minillm_repl.render.console import FIGURES, GOOD, TITLE, WARNING
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.progress import Answered, Reached
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell

if TYPE_CHECKING:
    from minillm_repl.lessons.run import Course

_ROUND = 10  # questions, when nobody says which


@command(
    "learn",
    ":learn [N|next|back|again|off]",
    aliases=("수업",),
    words=("next", "back", "again", "off"),
    group="Learn",
)
def learn(shell: Shell, argument: str) -> None:
    """List the lessons, or open one, on your own model.

    :learn N opens lesson N where you left it, :learn next the first that you have not finished. In
    a lesson an empty Enter goes on; what you type otherwise works as always. :learn back shows the
    screen before, :learn again starts the lesson afresh, :learn off leaves. It looks at the model
    that you have opened, at nalssi if you have named none, and works on a copy: your text and
    settings stay, and your model is back at the end. `--lesson N` opens one at the start; `--auto`
    runs it by itself.
    """
    from minillm_repl.lessons.run import Course

    course = shell.listener if isinstance(shell.listener, Course) else None
    lessons = read_lessons()
    match argument.lower():
        case "":
            from minillm_repl.lessons.draw import lessons_table

            reached = [
                (each, shell.progress.lessons.get(f"{spoken()} {number}"))
                for number, each in lessons.items()
            ]
            shell.screen.out.print(lessons_table(reached, shell.screen.out.width))
            shell.screen.note(
                _(
                    "`:learn next` begins · `:learn N` opens one · `:quiz` asks · "
                    "`:progress` keeps "
                    "score"
                )
            )
        case "off" | "back" | "again" if course is None:
            raise UserError(_("no lesson is open: `:learn next` opens one"))
        case "off" if course:
            course.leave()
            number = course.name.split()[-1]
            left = (
                _("left the quiz")
                if number == "quiz"
                else _("left; `:learn {n}` comes back to this place", n=number)
            )
            shell.screen.note(left)
        case "back" if course:
            course.go_to(course.place - 1)
        case "again" if course:
            course.go_to(0)
        case "next":
            after = int(course.name.split()[-1]) if course and course.name != "quiz" else 0
            unread = [
                number for number in lessons if number > after and not _reached(shell, number).done
            ]
            _open(shell, lessons[unread[0] if unread else min(lessons)])
        case _ if re.fullmatch(r"\d{1,3}", argument) and int(argument) in lessons:
            _open(shell, lessons[int(argument)])
        case _:
            raise UserError(
                _(
                    "there is no such lesson: they go from {first} to {last}",
                    first=min(lessons),
                    last=max(lessons),
                )
            )


@command("quiz", ":quiz [LESSON|off]", aliases=("퀴즈",), words=("off",), group="Learn")
def quiz(shell: Shell, argument: str) -> None:
    """Ask questions whose answers the model confirms.

    :quiz N asks all about lesson N, :quiz alone ten: what was wrong last time, then what was never
    asked. An empty Enter shows the answer. Every answer is explained; `:progress` shows the score.
    :quiz off leaves.
    """
    if argument.lower() == "off":
        learn.run(shell, "off")
    else:
        make_quiz(shell, argument).begin()


@command("progress", aliases=("진도",), group="Learn")
def progress(shell: Shell, _argument: str) -> None:
    """Show what you have read, and what to look at again."""
    from minillm_repl.lessons.draw import progress_text
    from minillm_repl.lessons.parse import read_quiz

    kept, questions = shell.progress, read_quiz(spoken())
    table = plain_table("", _("lesson"), _("read"), _("quiz"), _("look at again"))
    for number, lesson in read_lessons().items():
        of = {
            each.name: kept.questions.get(f"{spoken()} {each.name}")
            for each in questions
            if each.lesson == number
        }
        right = sum(each is not None and each.last for each in of.values())
        again = [name for name, each in of.items() if each is not None and not each.last]
        table.add_row(
            str(number),
            Text(lesson.title, TITLE),
            progress_text(lesson, kept.lessons.get(f"{spoken()} {number}")),
            Text(f"{right}/{len(of)}", GOOD if of and right == len(of) else FIGURES),
            Text(" ".join(again), WARNING),
        )
    shell.screen.out.print(table)


def read_lessons() -> dict[int, Lesson]:
    """Return all lessons in the language that is spoken."""
    from minillm_repl.lessons.parse import lesson_files, read_lesson

    return {number: read_lesson(path) for number, path in lesson_files(spoken()).items()}


def make_lesson(shell: Shell, number: int) -> "Course":
    """Return a lesson from its beginning. Raises UserError if there is none of this number."""
    from minillm_repl.lessons.run import lesson_course

    lessons = read_lessons()
    if number not in lessons:
        raise UserError(
            _(
                "there is no such lesson: they go from {first} to {last}",
                first=min(lessons),
                last=max(lessons),
            )
        )
    return lesson_course(shell, lessons[number], shell.progress)


def make_quiz(shell: Shell, argument: str) -> "Course":
    """Return a round of the quiz. Raises UserError if there is nothing to ask."""
    from minillm_repl.lessons.parse import read_quiz
    from minillm_repl.lessons.run import quiz_course

    questions, lessons = read_quiz(spoken()), read_lessons()
    if argument:
        asked = [each for each in questions if str(each.lesson) == argument]
        name = _("quiz on lesson {n}", n=argument)
    else:
        answered = [shell.progress.questions.get(f"{spoken()} {each.name}") for each in questions]
        order = sorted(zip(answered, questions, strict=True), key=lambda each: _turn(each[0]))
        asked, name = [each for _answered, each in order[:_ROUND]], _("quiz")
    if not asked:
        raise UserError(
            _(
                "there are no questions about that: `:quiz` or `:quiz N`, with N from "
                "{first} to {last}",
                first=min(lessons),
                last=max(lessons),
            )
        )
    texts = tuple(text for lesson in lessons.values() for text in lesson.texts)
    return quiz_course(shell, asked, texts, shell.progress, name)


def _open(shell: Shell, lesson: Lesson) -> None:
    from minillm_repl.lessons.run import lesson_course

    reached = _reached(shell, lesson.number)
    place = reached.screen if reached.screen < len(lesson.screens) else 0
    lesson_course(shell, lesson, shell.progress, place).begin(practised=reached.practised)


def _reached(shell: Shell, number: int) -> Reached:
    return shell.progress.lessons.get(f"{spoken()} {number}", Reached())


def _turn(answered: Answered | None) -> int:
    """Return when a question's turn is: those that were wrong, those never asked, those that
    were right.
    """
    return 1 if answered is None else 2 if answered.last else 0
