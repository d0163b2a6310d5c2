"""A lesson or a quiz while it runs: it gets each typed line first.

It has a session of its own, so that nothing that is tried in it changes the learner's model, text
or settings.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from platformdirs import user_state_path
from rich.text import Text

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.language import _
from minillm_repl.lessons.answers import parse_number
from minillm_repl.lessons.exercises import (
    ExerciseSteps,
    InputRequest,
)
from minillm_repl.lessons.values import LessonValues
from minillm_repl.repl.care import offer_help
from minillm_repl.repl.model_loading import ModelFuture
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings, Source
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.workspace import Workspace, Writable
from minillm_repl.safetext import safe_line
from minillm_repl.settings import specs
from minillm_repl.storage.paths import LESSON_MODEL, find_checkpoint
from minillm_repl.tokenizer import Tokenizer, decode

# tokens that a model says of its own accord, where no text of ours can be read to it
_GENERATED_TOKENS = 12


def practice_model() -> Path:
    """Return the path of the model that a lesson trains."""
    return user_state_path("minillm-repl") / "practice.safetensors"


@dataclass(kw_only=True)
class LessonRunner:
    """A lesson or a quiz, screen by screen.

    `shell` is the learner's; while the lesson runs, it has another session.
    """

    shell: Shell
    name: str  # `ko 4`; `quiz`
    title: Text
    screen_count: int  # screens
    run_screen: Callable[["LessonRunner", int], ExerciseSteps]  # one of them
    texts: tuple[str, ...] = ()
    screen_index: int = 0
    practice_path: Path | None = None  # of the model that it trains; None: practice_model()
    raises_errors: bool = False  # nobody is there: an error ends it
    # at a screen, or past the last
    on_arrival: Callable[["LessonRunner", int | None], None] = lambda _course, _place: None
    outer_session: Session = field(init=False)  # the learner's own
    # the text, as a model reads it
    _encoded_text: tuple[Checkpoint, list[int]] | None = field(init=False, default=None)
    _losses: list[float] = field(init=False, default_factory=list)  # of its trainings, in nats
    _steps: ExerciseSteps | None = field(init=False, default=None)
    _request: InputRequest = field(init=False, default=InputRequest("enter"))

    def start(self, *, has_trained: bool = False) -> None:
        """Start at `screen_index`. With `has_trained`, open the model that the lesson trained
        before.

        Raises UserError if there is no model.
        """
        shell = self.shell
        if isinstance(shell.line_handler, LessonRunner):
            shell.line_handler.leave()
        self.outer_session = shell.session
        if self.outer_session.workspace.user_selected:
            model = shell.require_model()
        else:
            path = find_checkpoint(LESSON_MODEL)
            model = shell.wait_for_model(
                ModelFuture(self.outer_session.workspace.loader, path), path
            )
            shell.screen.note(
                _(
                    "the lesson uses {name}, a model small enough to show completely; for "
                    "another, use `:load NAME` first",
                    name=LESSON_MODEL,
                )
            )
        practice_path = self.practice_path or practice_model()
        with suppress(OSError):  # then training says that it cannot save there
            practice_path.parent.mkdir(parents=True, exist_ok=True)
        loader = self.outer_session.workspace.loader
        practice = Writable(practice_path, is_practice=True)
        workspace = Workspace(loader=loader, model=model, destination=practice)
        # Settings of its own: the learner's come back with their session.
        settings = Settings(chat=False, care=self.outer_session.settings.care)
        # A lesson speaks of the program's defaults, so that those of a model do not count.
        sources: dict[str, Source] = dict.fromkeys(specs(Settings), "program")
        shell.session = Session(settings, workspace, sources=sources)
        if has_trained and practice_path.exists():
            shell.session.adopt(loader.load(practice_path), unsaved=False)
            # `adopt` made the place read-only; a lesson may still write its practice model there.
            workspace.destination = replace(practice, holds_ours=True)
        shell.line_handler, shell.lesson_start_count = self, shell.screen.out.print_count
        shell.screen.out.print(self.title)
        self._start_screen()

    def leave(self) -> None:
        """Record the place, and give the learner their session back."""
        self.on_arrival(self, self.screen_index)
        self._restore_session()

    @property
    def has_trained(self) -> bool:
        """Whether the open model was trained in this lesson."""
        workspace = self.shell.session.workspace
        return workspace.holds_ours and workspace.model is not self.outer_session.workspace.model

    @property
    def position_label(self) -> str:
        """The place in the lesson, for the toolbar: `lesson 4 3/9`."""
        # In the title of a lesson, the minutes follow two spaces (see lesson_title).
        return f"{self.title.plain.partition('  ')[0]} {self.screen_index + 1}/{self.screen_count}"

    @property
    def hint(self) -> str:
        """What the lesson waits for."""
        return self._request.hint or _("Enter continues · :learn off leaves")

    @property
    def expected(self) -> str:
        """The line that the lesson expects."""
        return self._request.expected

    def type_expected(self) -> None:
        """Continue as if the expected line had been typed. Raises what running it raises."""
        if self._request.kind == "answer":
            self._send(self._request.expected)
        else:
            self.handle_line("")

    def handle_line(self, line: str) -> None:
        """Handle a typed line. Raises what running it raises."""
        shell, request = self.shell, self._request
        # A lesson waits on: an answer to it is nobody's to judge then.
        if not shell.is_command(line) and offer_help(shell, line):
            return
        if self._steps is None:  # a Ctrl-C has ended the screen: it is shown again
            self._start_screen()
        elif request.kind == "answer" and line.startswith("::"):
            # An answer that begins with a colon has a second one, as a prompt has.
            self._send(line[1:])
        # In an answer, `/` is a character like any other; only `:` begins a command.
        elif shell.is_command(line) and not (request.kind == "answer" and line.startswith("/")):
            shell.run_line(line)
            # The command may have left the lesson or changed the screen.
            if request.kind == "try" and shell.line_handler is self and self._request is request:
                self._send(line)
        elif request.kind == "answer":
            if shell.screen.interactive:
                shell.echo(line, "\n")
            self._send(line)
        elif request.kind == "try":
            run = shell.run_prompt if not line.strip() and request.is_prompt else shell.run_line
            run(line if line.strip() else request.expected)
            self._send(line)
        elif request.kind == "enter" and parse_number(line) is not None:
            # `2번`, before the question is there: no prompt for a model.
            shell.screen.note(_("nothing is asked here yet: Enter continues"))
        elif line.strip():
            shell.run_line(line)
        else:
            self._send("")

    def go_to(self, screen_index: int) -> None:
        """Go to a screen; a number out of range becomes the nearest one."""
        self.screen_index = max(0, min(screen_index, self.screen_count - 1))
        self._start_screen()

    def lesson_values(self) -> LessonValues:
        """Return the values that the lesson's texts can show.

        If the session has no text, the text of the lesson becomes it.
        """
        shell, model = self.shell, self.shell.require_model()
        # `:load` and `:train` replace the checkpoint, maybe with another tokenizer.
        if self._encoded_text is None or self._encoded_text[0] is not model.checkpoint:
            self._encoded_text = model.checkpoint, encode_readable(shell, self.texts)
            record = model.checkpoint.record
            if self.has_trained and record and record.run:
                self._losses.append(record.run.last_loss)
        if not shell.session.conversation.ids:
            shell.session.conversation.start_turn(self._encoded_text[1], shell.session.settings)
        text = decode(model.checkpoint.tokenizer, self._encoded_text[1])
        earlier = self._losses[-2] if len(self._losses) > 1 else None
        return LessonValues(shell, text, has_trained=self.has_trained, earlier_loss=earlier)

    def _start_screen(self) -> None:
        self.on_arrival(self, self.screen_index)
        self._steps = self.run_screen(self, self.screen_index)
        self._send(None)

    def _send(self, line: str | None) -> None:
        """Continue the screen until it waits again; at its end the next screen follows."""
        assert self._steps is not None
        steps, self._steps = self._steps, None  # what fails is shown again from its beginning
        try:
            self._request = next(steps) if line is None else steps.send(line)
        except StopIteration:
            self._next_screen()
        else:
            self._steps = steps

    def _next_screen(self) -> None:
        if self.screen_index + 1 < self.screen_count:
            self.screen_index += 1
            self.shell.screen.out.print()
            self._start_screen()
        else:
            self._restore_session()
            self.on_arrival(self, None)

    def _restore_session(self) -> None:
        self.shell.session, self.shell.line_handler = self.outer_session, None


def run_unattended(course: LessonRunner, **options: bool) -> None:
    """Run all of a lesson with the expected lines.

    Raises UserError at the first thing that fails, and KeyboardInterrupt after Ctrl-C.
    """
    course.raises_errors = True
    course.start(**options)
    while course.shell.line_handler is course:
        line = course.expected
        if line:
            course.shell.screen.out.print(Text.assemble((">>> ", "bold"), safe_line(line)))
        course.type_expected()
        if course.shell.interrupted():
            raise KeyboardInterrupt


def encode_readable(shell: Shell, texts: tuple[str, ...]) -> list[int]:
    """Return tokens of the first text that the model can read whole, or of a word of its own."""
    model = shell.require_model()
    tokenizer = model.checkpoint.tokenizer
    for text in texts:
        if can_encode(tokenizer, text):
            return tokenizer.encode(text)[: model.decoder.context_length]
    from minillm_repl.generate import GenerationConfig, Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import make_rng

    # The first token that is visible; special tokens have no bytes.
    first = next(
        (token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token).strip()), 0
    )
    # `first` takes one place of the context.
    max_tokens = min(_GENERATED_TOKENS, model.decoder.context_length - 1)
    config = GenerationConfig(max_tokens=max_tokens)
    # A fixed seed: the figures of a lesson are the same each time.
    events = generate(model.decoder, tokenizer, [first], config, make_rng(0))
    return [first, *(event.id for event in events if isinstance(event, Step))]


def can_encode(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether a tokenizer reads all of a text; some drop what they do not know, without a
    word.
    """
    return bool(text) and decode(tokenizer, tokenizer.encode(text)) == text
