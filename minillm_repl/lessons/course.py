"""The lessons and the rounds of the quiz: which there are, and what each screen of them does."""

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.lessons import (
    Exercise,
    Lesson,
    Question,
    find_exercises,
)
from minillm_repl.lessons.blocks import run_blocks
from minillm_repl.lessons.claims import is_true
from minillm_repl.lessons.draw import lesson_title, terms_table
from minillm_repl.lessons.exercises import ExerciseSteps, InputRequest, run_exercise
from minillm_repl.lessons.parse import lesson_files, read_lesson, read_quiz
from minillm_repl.lessons.progress import LessonProgress, Progress, QuestionProgress
from minillm_repl.lessons.run import LessonRunner
from minillm_repl.render.console import FIGURES
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line

_ROUND_LENGTH = 10  # questions of a quiz, when no lesson is named


def read_lessons() -> dict[int, Lesson]:
    """Return all lessons of the present language, by number."""
    return {number: read_lesson(path) for number, path in lesson_files(current_language()).items()}


def find_lesson(number: int) -> Lesson:
    """Return a lesson. Raises UserError if there is none of this number."""
    lessons = read_lessons()
    if number not in lessons:
        raise UserError(
            _(
                "no such lesson: lessons run from {first} to {last}",
                first=min(lessons),
                last=max(lessons),
            )
        )
    return lessons[number]


def learner_progress(shell: Shell) -> Progress:
    """Return the learner's progress, which the shell carries and does not read."""
    # A shell that was made without progress keeps it in memory only.
    if not isinstance(shell.progress, Progress):
        shell.progress = Progress()
    return shell.progress


def lesson_progress(shell: Shell, number: int) -> LessonProgress:
    """Return how far the learner has come in a lesson."""
    name = f"{current_language()} {number}"
    return learner_progress(shell).lessons.get(name, LessonProgress())


def open_lesson(shell: Shell, lesson: Lesson) -> None:
    """Start a lesson where the learner left it. Raises UserError if there is no model."""
    reached = lesson_progress(shell, lesson.number)
    # A lesson that has fewer screens than it had begins anew.
    index = reached.screen if reached.screen < len(lesson.screens) else 0
    runner = make_lesson_runner(shell, lesson, learner_progress(shell), index)
    runner.start(has_trained=reached.practised)


def select_quiz(shell: Shell, lesson: str) -> LessonRunner:
    """Return a quiz that is not started: the questions of a lesson; without one ten of all, those
    that were answered wrong first.

    Raises UserError if there is nothing to ask.
    """
    questions, lessons, progress = (
        read_quiz(current_language()),
        read_lessons(),
        learner_progress(shell),
    )
    if lesson:
        selected = [each for each in questions if str(each.lesson) == lesson]
        name = _("quiz on lesson {n}", n=lesson)
    else:
        answers = progress.questions
        # The sort is stable: within a priority, questions keep the order of the file.
        order = sorted(
            questions,
            key=lambda each: _quiz_priority(answers.get(f"{current_language()} {each.name}")),
        )
        selected, name = order[:_ROUND_LENGTH], _("quiz")
    if not selected:
        raise UserError(
            _(
                "no such quiz: use `:quiz` or `:quiz N`, with N from {first} to {last}",
                first=min(lessons),
                last=max(lessons),
            )
        )
    # A question has no text of its own: the first of all lessons' texts that the model can read.
    texts = tuple(text for each in lessons.values() for text in each.texts)
    return make_quiz_runner(shell, selected, texts, progress, name)


def _quiz_priority(answered: QuestionProgress | None) -> int:
    """Return when a question's turn is: those answered wrong, those never asked, the others."""
    return 1 if answered is None else 2 if answered.last else 0


def make_lesson_runner(
    shell: Shell, lesson: Lesson, progress: Progress, screen_index: int = 0
) -> LessonRunner:
    """Return a lesson, to be begun at a screen."""
    name = f"{current_language()} {lesson.number}"

    def arrived(course: LessonRunner, place: int | None) -> None:
        # At the end (None), the shell has the learner's session again: `has_trained` would
        # be about that one.
        reached = LessonProgress(
            place or 0, place is None, place is not None and course.has_trained
        )
        progress.record_lesson(name, reached)
        _tell_failure(shell, progress)
        if place is None:
            shell.screen.out.print(terms_table(lesson))
            shell.screen.note(
                _(
                    "end of lesson {n} · `:quiz {n}` starts its quiz · `:learn next` opens "
                    "the next lesson",
                    n=lesson.number,
                )
            )

    def screen(course: LessonRunner, place: int) -> ExerciseSteps:
        last = place + 1 == len(lesson.screens)
        shell.session.conversation.clear()  # no screen depends on what was typed at another

        def answered(exercise: Exercise, given: str, right: bool | None) -> None:
            # By identity: two questions of a screen may be equal.
            asked = [id(each) for each in find_exercises(lesson.screens[place])]
            number = asked.index(id(exercise)) + 1
            progress.record_lesson_answer(f"{name}/{place + 1}.{number}", given, right)

        yield from run_blocks(course, lesson.screens[place], answered)
        yield InputRequest("enter", hint=_("Enter ends the lesson") if last else "")
        return None

    return LessonRunner(
        shell=shell,
        name=name,
        title=lesson_title(lesson),
        screen_count=len(lesson.screens),
        run_screen=screen,
        texts=lesson.texts,
        screen_index=screen_index,
        practice_path=progress.practice_model,
        on_arrival=arrived,
    )


def make_quiz_runner(
    shell: Shell, questions: list[Question], texts: tuple[str, ...], progress: Progress, name: str
) -> LessonRunner:
    """Return a round of questions; each answer is noted."""
    score = {"right": 0, "answered": 0}  # of this round; the progress file keeps all rounds

    def arrived(_course: LessonRunner, place: int | None) -> None:
        if place is None:
            shell.screen.note(
                _("{right} of {answered} correct · `:progress` shows what to review", **score)
            )

    def screen(course: LessonRunner, place: int) -> ExerciseSteps:
        question = questions[place]
        shell.session.conversation.clear()
        shell.screen.out.print(Text(_("question {name}", name=question.name), FIGURES))
        yield from run_blocks(course, question.intro)
        if not is_true(question.exercise, course.lesson_values()):
            return None
        right = yield from run_exercise(shell, course.lesson_values(), question.exercise)
        if right is not None:
            score["right"], score["answered"] = score["right"] + right, score["answered"] + 1
            progress.record_answer(f"{current_language()} {question.name}", right)
        return right

    return LessonRunner(
        shell=shell,
        name="quiz",
        title=Text(name),
        screen_count=len(questions),
        run_screen=screen,
        texts=texts,
        practice_path=progress.practice_model,
        on_arrival=arrived,
    )


def _tell_failure(shell: Shell, progress: Progress) -> None:
    """Tell, once a lesson, that progress is not kept: else nobody would know before it is lost."""
    if progress.failure:
        shell.screen.warn(_("progress is not kept: {error}", error=safe_line(progress.failure)))
