"""`:learn`, `:quiz`, `:progress`."""

from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.lessons.blocks import Lesson
from minillm_repl.lessons.progress import LessonProgress, Progress, QuestionProgress
from minillm_repl.render.console import FIGURES, GOOD, TITLE, WARNING
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell

if TYPE_CHECKING:
    from minillm_repl.lessons.run import LessonRunner

_ROUND = 10  # questions, when nobody says which


@command(
    "learn",
    arguments=(Words("lesson", "N|next|back|again|off", "next", "back", "again", "off"),),
    aliases=("수업",),
    group="Learn",
)
def learn(shell: Shell, asked: Arguments) -> None:
    """List the lessons, or open one on your own model.

    :learn N opens lesson N where you left it.
    :learn next opens the first lesson that you have not finished.
    :learn back shows the previous screen.
    :learn again restarts the lesson.
    :learn off leaves the lesson.

    In a lesson, an empty Enter continues. Prompts and commands work as usual. A lesson uses the
    model that you opened, or nalssi if you named none. It works on a copy: your text and settings
    stay, and your model is back at the end.

    `--lesson N` opens a lesson at the start; `--auto` runs it without input.
    """
    from minillm_repl.lessons.run import LessonRunner

    course = shell.line_handler if isinstance(shell.line_handler, LessonRunner) else None
    lessons = read_lessons()
    match asked.lesson.lower():
        case "":
            from minillm_repl.lessons.draw import lessons_table

            reached = [
                (each, _progress(shell).lessons.get(f"{current_language()} {number}"))
                for number, each in lessons.items()
            ]
            shell.screen.out.print(lessons_table(reached, shell.screen.out.width))
            shell.screen.note(
                _(
                    "`:learn next` starts · `:learn N` opens one · `:quiz` asks · "
                    "`:progress` shows the score"
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
                else _("left the lesson; `:learn {n}` returns to this place", n=number)
            )
            shell.screen.note(left)
        case "back" if course:
            course.go_to(course.screen_index - 1)
        case "again" if course:
            course.go_to(0)
        case "next":
            after = int(course.name.split()[-1]) if course and course.name != "quiz" else 0
            unread = [
                number for number in lessons if number > after and not _reached(shell, number).done
            ]
            _open_lesson(shell, lessons[unread[0] if unread else min(lessons)])
        case number if number.isdecimal() and int(number) in lessons:
            _open_lesson(shell, lessons[int(number)])
        case _:
            raise UserError(
                _(
                    "no such lesson: lessons run from {first} to {last}",
                    first=min(lessons),
                    last=max(lessons),
                )
            )


@command(
    "quiz", arguments=(Words("lesson", "LESSON|off", "off"),), aliases=("퀴즈",), group="Learn"
)
def quiz(shell: Shell, asked: Arguments) -> None:
    """Take a quiz; the model itself confirms the answers.

    `:quiz N` asks all questions of lesson N. `:quiz` alone asks ten: first the ones you got wrong
    last time, then new ones.

    An empty Enter shows the answer. Every answer is explained; `:progress` shows the score. `:quiz
    off` leaves.
    """
    if asked.lesson.lower() == "off":
        learn.run(shell, asked)
    else:
        make_quiz_runner(shell, asked.lesson).start()


@command("progress", aliases=("진도",), group="Learn")
def progress(shell: Shell, _asked: Arguments) -> None:
    """Show your progress in the lessons and quizzes."""
    from minillm_repl.lessons.draw import progress_text
    from minillm_repl.lessons.parse import read_quiz

    kept, questions = _progress(shell), read_quiz(current_language())
    table = plain_table("", _("lesson"), _("read"), _("quiz"), _("review"))
    for number, lesson in read_lessons().items():
        of = {
            each.name: kept.questions.get(f"{current_language()} {each.name}")
            for each in questions
            if each.lesson == number
        }
        right = sum(each is not None and each.last for each in of.values())
        again = [name for name, each in of.items() if each is not None and not each.last]
        table.add_row(
            str(number),
            Text(lesson.title, TITLE),
            progress_text(lesson, kept.lessons.get(f"{current_language()} {number}")),
            Text(f"{right}/{len(of)}", GOOD if of and right == len(of) else FIGURES),
            Text(" ".join(again), WARNING),
        )
    shell.screen.out.print(table)


def read_lessons() -> dict[int, Lesson]:
    """Return all lessons in the language that is spoken."""
    from minillm_repl.lessons.parse import lesson_files, read_lesson

    return {number: read_lesson(path) for number, path in lesson_files(current_language()).items()}


def make_lesson_runner(shell: Shell, number: int) -> "LessonRunner":
    """Return a lesson from its beginning. Raises UserError if there is none of this number."""
    from minillm_repl.lessons.run import make_lesson_runner

    lessons = read_lessons()
    if number not in lessons:
        raise UserError(
            _(
                "no such lesson: lessons run from {first} to {last}",
                first=min(lessons),
                last=max(lessons),
            )
        )
    return make_lesson_runner(shell, lessons[number], _progress(shell))


def make_quiz_runner(shell: Shell, argument: str) -> "LessonRunner":
    """Return a round of the quiz. Raises UserError if there is nothing to ask."""
    from minillm_repl.lessons.parse import read_quiz
    from minillm_repl.lessons.run import make_quiz_runner

    questions, lessons = read_quiz(current_language()), read_lessons()
    if argument:
        selected = [each for each in questions if str(each.lesson) == argument]
        name = _("quiz on lesson {n}", n=argument)
    else:
        answered = [
            _progress(shell).questions.get(f"{current_language()} {each.name}")
            for each in questions
        ]
        order = sorted(
            zip(answered, questions, strict=True), key=lambda each: _quiz_priority(each[0])
        )
        selected, name = [each for _answered, each in order[:_ROUND]], _("quiz")
    if not selected:
        raise UserError(
            _(
                "no such quiz: use `:quiz` or `:quiz N`, with N from {first} to {last}",
                first=min(lessons),
                last=max(lessons),
            )
        )
    texts = tuple(text for lesson in lessons.values() for text in lesson.texts)
    return make_quiz_runner(shell, selected, texts, _progress(shell), name)


def _open_lesson(shell: Shell, lesson: Lesson) -> None:
    from minillm_repl.lessons.run import make_lesson_runner

    reached = _reached(shell, lesson.number)
    place = reached.screen if reached.screen < len(lesson.screens) else 0
    make_lesson_runner(shell, lesson, _progress(shell), place).start(has_trained=reached.practised)


def _progress(shell: Shell) -> Progress:
    """Return the learner's progress, which the shell carries and does not read."""
    if not isinstance(shell.progress, Progress):
        shell.progress = Progress()
    return shell.progress


def _reached(shell: Shell, number: int) -> LessonProgress:
    return _progress(shell).lessons.get(f"{current_language()} {number}", LessonProgress())


def _quiz_priority(answered: QuestionProgress | None) -> int:
    """Return when a question's turn is: those answered wrong, those never asked, the others."""
    return 1 if answered is None else 2 if answered.last else 0
