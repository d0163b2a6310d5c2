"""A lesson or a round of the quiz while it goes on: it gets each line that is typed first.

Beside the learner's own session it has one of its own, so that nothing that is tried in it changes
their model, text or settings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_state_path
from rich.text import Text

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.language import _, spoken
from minillm_repl.lessons import draw as drawing
from minillm_repl.lessons.blocks import (
    Exercise,
    Guess,
    Lesson,
    Prose,
    Question,
    Screen,
    Show,
    Try,
    When,
)
from minillm_repl.lessons.draw import filled, lesson_title
from minillm_repl.lessons.exercises import Steps, Wait, attempt, exercise, guess
from minillm_repl.lessons.parse import practice_file
from minillm_repl.lessons.values import Facts
from minillm_repl.render.console import FIGURES
from minillm_repl.repl.model_loading import Loading
from minillm_repl.repl.progress import Progress, Reached
from minillm_repl.repl.recent_models import Recent
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import FIRST, find
from minillm_repl.tokenizer.base import Tokenizer, decode

# tokens that a model says of its own accord, where no text of ours can be read to it
_OWN_WORDS = 12


def practice_model() -> Path:
    """Return where the model lies that a lesson has trained."""
    return user_state_path("minillm-repl") / "practice.safetensors"


@dataclass
class Course:
    """What goes on, screen by screen.

    Its `shell` is the learner's, with a session of its own while it lasts.
    """

    shell: Shell
    name: str  # `ko 4`; `quiz`
    title: Text
    count: int  # screens
    screen: Callable[["Course", int], Steps]  # one of them
    texts: tuple[str, ...] = ()
    place: int = 0
    strict: bool = False  # nobody is there: an error ends it
    # at a screen, or past the last
    arrived: Callable[["Course", int | None], None] = lambda _course, _place: None
    outside: Session = field(init=False)  # the learner's own
    # the text, as a model reads it
    _read: tuple[Checkpoint, list[int]] | None = field(init=False, default=None)
    _steps: Steps | None = field(init=False, default=None)
    _waiting: Wait = field(init=False, default=Wait("enter"))

    def begin(self, *, practised: bool = False) -> None:
        """Open it where `place` says. Raises UserError if there is no model."""
        shell = self.shell
        if isinstance(shell.listener, Course):
            shell.listener.leave()
        self.outside = shell.session
        if self.outside.chosen:
            model = shell.model()
        else:
            path = find(FIRST)
            model = shell.wait_for(Loading(self.outside.opening, path), path)
            shell.screen.note(
                _(
                    "on {name}, small enough to look at whole; `:load NAME` first chooses another",
                    name=FIRST,
                )
            )
        own = practice_model()
        own.parent.mkdir(parents=True, exist_ok=True)
        shell.session = Session(
            Settings(chat=False),
            self.outside.opening,
            Recent(None),
            threads=self.outside.threads,
            path=own,
            own=True,
            practice=True,
            _model=model,
        )
        if practised and own.exists():
            shell.session.adopt(self.outside.opening.open(own), unsaved=False)
            shell.session.own = shell.session.written = True
        shell.listener, shell.lesson_began = self, shell.screen.out.count
        shell.screen.out.print(self.title)
        self._go()

    def leave(self) -> None:
        """Note where one is, and give the learner back what was theirs."""
        self.arrived(self, self.place)
        self._put_back()

    @property
    def practising(self) -> bool:
        """Whether the open model is one that was trained here."""
        return self.shell.session.model is not self.outside.model and self.shell.session.written

    @property
    def where(self) -> str:
        """Where one is, for the toolbar."""
        return f"{self.title.plain.partition('  ')[0]} {self.place + 1}/{self.count}"

    @property
    def hint(self) -> str:
        """What is waited for."""
        return self._waiting.hint or _("Enter goes on · :learn off leaves")

    @property
    def expected(self) -> str:
        """What would be typed by somebody who knows."""
        return self._waiting.expected

    def type_expected(self) -> None:
        """Go on as if that had been typed. Raises what running it raises."""
        if self._waiting.kind == "answer":
            self._send(self._waiting.expected)
        else:
            self.take("")

    def take(self, line: str) -> None:
        """Get a line that was typed. Raises what running it raises."""
        shell, waiting = self.shell, self._waiting
        if self._steps is None:  # a Ctrl-C has ended the screen: it is shown again
            self._go()
        elif waiting.kind == "answer" and line.startswith("::"):
            self._send(line[1:])
        elif shell.is_command(line) and not (waiting.kind == "answer" and line.startswith("/")):
            shell.run(line)
            if waiting.kind == "try" and shell.listener is self and self._waiting is waiting:
                self._send(line)
        elif waiting.kind == "answer":
            if shell.screen.interactive:
                shell.echo(line, "\n")
            self._send(line)
        elif waiting.kind == "try":
            run = shell.prompt if not line.strip() and waiting.prompt else shell.run
            run(line if line.strip() else waiting.expected)
            self._send(line)
        elif line.strip():
            shell.run(line)
        else:
            self._send("")

    def go_to(self, place: int) -> None:
        """Go to a screen."""
        self.place = max(0, min(place, self.count - 1))
        self._go()

    def facts(self) -> Facts:
        """Return what can be said of the model and the text, putting the lesson's text there if
        there is none.
        """
        shell, model = self.shell, self.shell.model()
        if self._read is None or self._read[0] is not model.checkpoint:
            self._read = model.checkpoint, readable(shell, self.texts)
        if not shell.session.ids:
            shell.session.begin(self._read[1])
        text = decode(model.checkpoint.tokenizer, self._read[1])
        return Facts(shell, text, practising=self.practising)

    def _go(self) -> None:
        self.arrived(self, self.place)
        self._steps = self.screen(self, self.place)
        self._send(None)

    def _send(self, line: str | None) -> None:
        """Let the screen go on to where it waits; at its end comes the next."""
        assert self._steps is not None
        steps, self._steps = self._steps, None  # what fails is shown again from its beginning
        try:
            self._waiting = next(steps) if line is None else steps.send(line)
        except StopIteration:
            self._next()
        else:
            self._steps = steps

    def _next(self) -> None:
        if self.place + 1 < self.count:
            self.place += 1
            self.shell.screen.out.print()
            self._go()
        else:
            self._put_back()
            self.arrived(self, None)

    def _put_back(self) -> None:
        self.shell.session, self.shell.listener = self.outside, None


def run_alone(course: Course, **options: bool) -> None:
    """Go through all of it, typing what is expected.

    Raises UserError at the first thing that fails.
    """
    course.strict = True
    course.begin(**options)
    while course.shell.listener is course:
        line = course.expected
        if line:
            course.shell.screen.out.print(Text.assemble((">>> ", "bold"), safe_line(line)))
        course.type_expected()
        if course.shell.interrupted():
            raise KeyboardInterrupt


def lesson_course(shell: Shell, lesson: Lesson, progress: Progress, place: int = 0) -> Course:
    """Return a lesson, to be begun at a screen."""
    name = f"{spoken()} {lesson.number}"

    def arrived(course: Course, place: int | None) -> None:
        reached = Reached(place or 0, place is None, place is not None and course.practising)
        progress.reach(name, reached)
        if place is None:
            shell.screen.note(
                _(
                    "the end of lesson {n} · `:quiz {n}` asks about it · `:learn next` goes on",
                    n=lesson.number,
                )
            )

    def screen(course: Course, place: int) -> Steps:
        last = place + 1 == len(lesson.screens)
        shell.session.clear()
        yield from _blocks(course, lesson.screens[place])
        yield Wait("enter", hint=_("Enter ends the lesson") if last else "")
        return None

    return Course(
        shell,
        name,
        lesson_title(lesson),
        len(lesson.screens),
        screen,
        lesson.texts,
        place,
        arrived=arrived,
    )


def quiz_course(
    shell: Shell, questions: list[Question], texts: tuple[str, ...], progress: Progress, name: str
) -> Course:
    """Return a round of questions; each answer is noted."""
    score = {"right": 0, "answered": 0}

    def arrived(_course: Course, place: int | None) -> None:
        if place is None:
            shell.screen.note(
                _("{right} of {answered} right · `:progress` shows what to look at again", **score)
            )

    def screen(course: Course, place: int) -> Steps:
        question = questions[place]
        shell.session.clear()
        shell.screen.out.print(Text(_("question {name}", name=question.name), FIGURES))
        yield from _blocks(course, question.before)
        right = yield from exercise(shell, course.facts(), question.exercise)
        if right is not None:
            score["right"], score["answered"] = score["right"] + right, score["answered"] + 1
            progress.answer(f"{spoken()} {question.name}", right)
        return right

    return Course(shell, "quiz", Text(name), len(questions), screen, texts, arrived=arrived)


def readable(shell: Shell, texts: tuple[str, ...]) -> list[int]:
    """Return the tokens of the first text that the open model can read whole; else of one of its
    own words.
    """
    model = shell.model()
    tokenizer = model.checkpoint.tokenizer
    for text in texts:
        if _reads(tokenizer, text):
            return tokenizer.encode(text)[: model.decoder.context]
    from minillm_repl.generate.events import Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import numbers

    first = next(
        (token for token in range(tokenizer.size) if tokenizer.token_bytes(token).strip()), 0
    )
    events = generate(
        model.decoder,
        tokenizer,
        [first],
        Settings(),
        numbers(0),
        max_tokens=min(_OWN_WORDS, model.decoder.context - 1),
    )
    return [first, *(event.id for event in events if isinstance(event, Step))]


def _blocks(course: Course, blocks: Screen) -> Steps:
    """Show blocks one after the other, waiting where the learner has something to do."""
    shell = course.shell
    for block in blocks:
        match block:
            case Prose():
                shell.screen.out.print(drawing.Prose(block.markdown, course.facts().value))
            case Show():
                yield from _show(course, block)
            case Try():
                yield from _try(course, block)
            case Guess():
                yield from guess(shell, block, _to_guess(course, block))
            case When():
                if course.facts().holds(block.condition):
                    yield from _blocks(course, block.blocks)
            case _:
                assert isinstance(block, Exercise)
                yield from exercise(shell, course.facts(), block)
        shell.screen.out.print()
    return None


def _show(course: Course, block: Show) -> Steps:
    shell = course.shell
    for each in block.lines:
        line = filled(each, course.facts().value)
        try:
            # a model's text is never a command
            (shell.run if each.startswith(":") else shell.prompt)(line)
        except UserError as error:
            if course.strict:
                raise UserError(f"{course.where}: {line}: {error}") from None
            shell.screen.fail(str(error))
        if shell.interrupted():
            yield Wait("enter", hint=_("stopped; Enter goes on"))
    return None


def _try(course: Course, block: Try) -> Steps:
    done = yield from attempt(course.shell, course.facts(), block)
    said = block.done if done else block.otherwise or block.done
    if said:
        course.shell.screen.out.print(drawing.Prose(said, course.facts().value))
    return done


def _to_guess(course: Course, block: Guess) -> str:
    """Return the text of the guessing game: one that the model can read."""
    shell = course.shell
    tokenizer = shell.model().checkpoint.tokenizer
    lines = [
        line
        for line in practice_file(spoken()).read_text(encoding="utf-8").splitlines()
        if len(line) > block.rounds
    ]
    for text in [*(each.strip() for each in block.text.split(" | ")), *lines[:1]]:
        if _reads(tokenizer, text):
            return text
    course.facts()
    return decode(tokenizer, shell.session.ids)


def _reads(tokenizer: Tokenizer, text: str) -> bool:
    """Tell whether a tokenizer reads all of a text: some leave out what they do not know, and do
    not say so.
    """
    return bool(text) and decode(tokenizer, tokenizer.encode(text)) == text
