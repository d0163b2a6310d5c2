"""What the blocks of a screen do: texts and views appear, exercises wait for the learner."""

from collections.abc import Callable, Generator

from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.lessons import Claim, Exercise, Guess, LessonScreen, Prose, Show, Try, When
from minillm_repl.lessons.claims import claim_text, is_true
from minillm_repl.lessons.draw import LessonMarkdown, fill_placeholders
from minillm_repl.lessons.exercises import (
    ExerciseSteps,
    InputRequest,
    run_exercise,
    run_guess,
    run_try,
)
from minillm_repl.lessons.parse import practice_file
from minillm_repl.lessons.run import LessonRunner, can_encode
from minillm_repl.tokenizer import decode

AnswerRecorder = Callable[[Exercise, str, bool | None], None]
"""Records what was typed to a question, and whether it was right."""


def run_blocks(
    runner: LessonRunner,
    blocks: LessonScreen,
    record: AnswerRecorder = lambda _exercise, _given, _right: None,
) -> ExerciseSteps:
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
            case Claim():
                _show_claim(runner, block)
            case When():
                if runner.lesson_values().holds(block.condition):
                    yield from run_blocks(runner, block.blocks, record)
            case _:
                # For the type checker: only the types of the union Exercise are left.
                assert isinstance(block, Exercise)
                if not is_true(block, runner.lesson_values()):
                    continue
                steps = run_exercise(shell, runner.lesson_values(), block)
                given, right = yield from _listened(steps)
                if given:
                    record(block, given, right)
        shell.screen.out.print()
    return None


def _listened(
    steps: ExerciseSteps,
) -> Generator[InputRequest, str, tuple[str, bool | None]]:
    """Run an exercise. Return the lines that were typed, with arrows between, and its result."""
    lines: list[str] = []
    line = ""
    while True:
        try:
            request = steps.send(line) if lines else next(steps)
        except StopIteration as end:
            return " → ".join(filter(str.strip, lines)), end.value
        line = yield request
        lines.append(line)


def _show_claim(runner: LessonRunner, block: Claim) -> None:
    values = runner.lesson_values()
    try:
        text, about = claim_text(block, values)
    except UserError:  # a view that this model does not have, or this text is too long for
        if runner.raises_errors:
            raise
        text, about = block.otherwise, values
    if text:
        runner.shell.screen.out.print(LessonMarkdown(text, about.value))


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
