"""`:learn`, `:quiz`, `:progress`."""

from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.render.console import FIGURES, GOOD, TITLE, WARNING
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.layouts import to_latin_keys
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import ExitRequested, Shell

if TYPE_CHECKING:
    from minillm_repl.lessons.run import LessonRunner


_WORDS = {word: word for word in ("next", "back", "again", "off")} | {
    "다음": "next",
    "이어서": "next",
    "뒤로": "back",
    "이전": "back",
    "다시": "again",
    "처음부터": "again",
    "그만": "off",
    "끝": "off",
    "나가기": "off",
}


@command(
    "learn",
    arguments=(Words("lesson", "N|next|back|again|off", "next", "back", "again", "off"),),
    aliases=("수업",),
    group="Learn",
    example=":learn 1",
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
    # Lessons are parsed from files; the start does without them.
    from minillm_repl.lessons.course import find_lesson, lesson_progress, open_lesson, read_lessons
    from minillm_repl.lessons.run import LessonRunner

    runner = shell.line_handler if isinstance(shell.line_handler, LessonRunner) else None
    match _spelt(asked.lesson):
        case "":
            _list_lessons(shell)
        case "off" | "back" | "again" if runner is None:
            raise UserError(_("no lesson is open: `:learn next` opens one"))
        case "off" if runner:
            _leave(shell, runner)
        case "back" if runner:
            runner.go_to(runner.screen_index - 1)
        case "again" if runner:
            runner.go_to(0)
        case "next":
            lessons = read_lessons()
            # From the open lesson on; `lesson 3` is the name of the third.
            after = int(runner.name.split()[-1]) if runner and runner.name != "quiz" else 0
            later = [number for number in lessons if number > after]
            unread = [number for number in later if not lesson_progress(shell, number).done]
            # All are read: begin again.
            open_lesson(shell, lessons[unread[0] if unread else min(lessons)])
        case number:
            # No lesson has number 0: find_lesson then says which there are.
            open_lesson(shell, find_lesson(int(number) if number.isdecimal() else 0))


def _spelt(word: str) -> str:
    """Return what follows `:learn` as its usage spells it: `다음` is next, `2번` is 2."""
    from minillm_repl.lessons.answers import parse_number

    plain = word.strip().casefold()
    for said in (plain, to_latin_keys(plain)):
        if said in _WORDS:
            return _WORDS[said]
    number = parse_number(plain.removeprefix("수업").removeprefix("lesson"))
    return str(int(number)) if number is not None and number == int(number) else plain


def _list_lessons(shell: Shell) -> None:
    from minillm_repl.lessons.course import learner_progress, read_lessons
    from minillm_repl.lessons.draw import lessons_table

    # A lesson is read in one language: progress is kept for each.
    kept = learner_progress(shell).lessons
    reached = [
        (each, kept.get(f"{current_language()} {number}"))
        for number, each in read_lessons().items()
    ]
    shell.screen.out.print(lessons_table(reached, shell.screen.out.width))
    shell.screen.note(
        _(
            "`:learn next` starts · `:learn N` opens one · `:quiz` asks · "
            "`:progress` shows the score"
        )
    )


def _leave(shell: Shell, runner: "LessonRunner") -> None:
    runner.leave()
    number = runner.name.split()[-1]
    shell.screen.note(
        _("left the quiz")
        if number == "quiz"
        else _("left the lesson; `:learn {n}` returns to this place", n=number)
    )


@command("leave", aliases=("나가기",), group="Learn")
def leave(shell: Shell, _asked: Arguments) -> None:
    """Leave the lesson or quiz; with none open, the program."""
    from minillm_repl.lessons.run import LessonRunner

    if not isinstance(shell.line_handler, LessonRunner):
        raise ExitRequested
    _leave(shell, shell.line_handler)


@command(
    "quiz",
    arguments=(Words("lesson", "LESSON|off", "off"),),
    aliases=("퀴즈",),
    group="Learn",
    example=":quiz 1",
)
def quiz(shell: Shell, asked: Arguments) -> None:
    """Take a quiz; the model itself confirms the answers.

    `:quiz N` asks all questions of lesson N. `:quiz` alone asks ten: first the ones you got wrong
    last time, then new ones.

    An empty Enter shows the answer. Every answer is explained; `:progress` shows the score. `:quiz
    off` leaves.
    """
    if _spelt(asked.lesson) == "off":  # leaving is the same for lessons and quiz
        # Both commands call their argument `lesson`, so `:learn` can read `asked`.
        learn.run(shell, asked)
    else:
        from minillm_repl.lessons.course import select_quiz

        select_quiz(shell, _spelt(asked.lesson)).start()


@command("progress", aliases=("진도",), group="Learn")
def progress(shell: Shell, _asked: Arguments) -> None:
    """Show your progress in the lessons and quizzes."""
    from minillm_repl.lessons.course import learner_progress, read_lessons
    from minillm_repl.lessons.draw import progress_text
    from minillm_repl.lessons.parse import read_quiz

    kept, questions = learner_progress(shell), read_quiz(current_language())
    table = plain_table("", _("lesson"), _("read"), _("quiz"), _("review"))
    for number, lesson in read_lessons().items():
        # By question; None is one that was never asked.
        of = {
            each.name: kept.questions.get(f"{current_language()} {each.name}")
            for each in questions
            if each.lesson == number
        }
        # The last answer counts: one may learn from a wrong one.
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
