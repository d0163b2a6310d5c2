"""The lessons and the rounds of the quiz: which there are, and what each screen of them does."""

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.lessons import (
    Exercise,
    Guess,
    Lesson,
    LessonScreen,
    Prose,
    Question,
    Show,
    Try,
    When,
)
from minillm_repl.lessons.draw import LessonMarkdown, fill_placeholders, lesson_title
from minillm_repl.lessons.exercises import (
    ExerciseSteps,
    InputRequest,
    run_exercise,
    run_guess,
    run_try,
)
from minillm_repl.lessons.parse import lesson_files, practice_file, read_lesson, read_quiz
from minillm_repl.lessons.progress import LessonProgress, Progress, QuestionProgress
from minillm_repl.lessons.run import LessonRunner, can_encode
from minillm_repl.render.console import FIGURES
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer import decode

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
        if place is None:
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
        yield from _run_blocks(course, lesson.screens[place])
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
        yield from _run_blocks(course, question.intro)
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
        on_arrival=arrived,
    )


def _run_blocks(runner: LessonRunner, blocks: LessonScreen) -> ExerciseSteps:
    """Show blocks one after the other, waiting where the learner has something to do."""
    shell = runner.shell
    for block in blocks:
        # Each block asks for new values: the one before may have changed the model or the text.
        match block:
            case Prose():
                shell.screen.out.print(LessonMarkdown(block.markdown, runner.lesson_values().value))
            case Show():
                yield from _run_show(runner, block)
            case Try():
                yield from _run_try_block(runner, block)
            case Guess():
                yield from run_guess(shell, block, _guess_text(runner, block))
            case When():
                if runner.lesson_values().holds(block.condition):
                    yield from _run_blocks(runner, block.blocks)
            case _:
                # For the type checker: only the types of the union Exercise are left.
                assert isinstance(block, Exercise)
                yield from run_exercise(shell, runner.lesson_values(), block)
        shell.screen.out.print()
    return None


def _run_show(course: LessonRunner, block: Show) -> ExerciseSteps:
    shell = course.shell
    for each in block.lines:
        line = fill_placeholders(each, course.lesson_values().value)
        try:
            # a model's text is never a command
            (shell.run_line if each.startswith(":") else shell.run_prompt)(line)
        except UserError as error:
            if course.raises_errors:  # with `--auto`: the place of the error is part of it
                raise UserError(f"{course.position_label}: {line}: {error}") from None
            shell.screen.fail(str(error))
        # A Ctrl-C ends one line; the next one runs when the learner is ready.
        if shell.interrupted():
            yield InputRequest("enter", hint=_("stopped; Enter continues"))
    return None


def _run_try_block(course: LessonRunner, block: Try) -> ExerciseSteps:
    done = yield from run_try(course.shell, course.lesson_values(), block)
    reaction = block.done if done else block.otherwise or block.done
    if reaction:
        course.shell.screen.out.print(LessonMarkdown(reaction, course.lesson_values().value))
    return done


def _guess_text(course: LessonRunner, block: Guess) -> str:
    """Return the text of the guessing game: one that the model can read."""
    shell = course.shell
    tokenizer = shell.require_model().checkpoint.tokenizer
    lines = [
        line
        for line in practice_file(current_language()).read_text(encoding="utf-8").splitlines()
        if len(line) > block.rounds
    ]
    for text in [*(each.strip() for each in block.text.split(" | ")), *lines[:1]]:
        if can_encode(tokenizer, text):
            return text
    course.lesson_values()  # puts a text that the model can read into the conversation
    return decode(tokenizer, shell.session.conversation.ids)
