"""What a command works with, and what a line does: run a command, or prompt the model."""

from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from minillm_repl.environment import leave_missing_folder
from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.render.console import Screen
from minillm_repl.repl.answering import respond
from minillm_repl.repl.care import offer_help, offer_help_for_command
from minillm_repl.repl.conversation import is_chatting, reserved_answer_tokens
from minillm_repl.repl.model_loading import LoadedModel, ModelFuture
from minillm_repl.repl.reading import ReadFile, fill_in
from minillm_repl.repl.registry import Command, Registry
from minillm_repl.repl.session import LineHandler, Session
from minillm_repl.repl.session_record import Recorder
from minillm_repl.repl.signals import InterruptCounter
from minillm_repl.safetext import safe, safe_line
from minillm_repl.storage.paths import checkpoint_title, exists
from minillm_repl.tokenizer.lookup import typed_ids, unknown_text_warning

PROMPT = ">>> "
EXIT_WORDS = ("exit", "quit")  # as in Python, without a colon


class ExitRequested(Exception):  # noqa: N818 - a wish, not an error
    """The user wants to leave."""


@dataclass(kw_only=True)
class Shell:
    """A session with a screen to draw on and commands to run."""

    session: Session
    screen: Screen
    registry: Registry
    interrupted: InterruptCounter = field(default_factory=partial(InterruptCounter, 0))
    escape_pressed: Callable[[], bool] = bool  # whether Esc was pressed since it was asked last
    drop_typed_ahead: Callable[[], object] = bool  # what was typed while the model wrote
    progress: object = None  # of the learner: lessons keep it here, and no one else reads it
    line_handler: LineHandler | None = None  # the open lesson, which gets each line first
    lesson_start_count: int = 0  # how much had been printed then
    last_view: Callable[[int], RenderableType] | None = None  # draws it again, into a width
    last_shown: object = None  # the view itself
    last_pinned: tuple[int, int] = (0, 0)  # rows and columns of it that stay when it is scrolled
    recorder: Recorder = field(init=False)  # of the session, in memory or in a file too
    typed_lines: Callable[[], list[str]] = list  # of the history, the oldest first
    next_line: str = ""  # what the next prompt line begins with, for the user to change

    def __post_init__(self) -> None:
        self.recorder = Recorder(self)

    def execute(self, line: str) -> None:
        """Do what a line says, or hand it to the lesson that listens. Raises UserError."""
        if self.session.workspace.loading is not None:
            self.session.workspace.finish_loading()  # what was loaded while the line was typed
        try:
            if self.line_handler is not None:
                self.line_handler.handle_line(line)
            elif self.screen.interactive and line.rstrip() in EXIT_WORDS:
                raise ExitRequested
            else:
                self.run_line(line)
        finally:
            self.recorder.after_line(line)

    def run_line(self, line: str) -> None:
        """Run a command after `:`, or a prompt; `::` is a literal colon. Raises UserError."""
        if line.startswith("::"):  # a prompt that begins with a colon
            self.run_prompt(line[1:])
        elif self.is_command(line):
            name, _space, argument = self.registry.expand(line[1:].lstrip()).partition(" ")
            if self.screen.interactive:
                self.echo(line, "\n")
            try:
                self._command(self.registry.get(name.strip().lower()), argument)
            finally:
                self._tell_broken_plugins()
        else:
            self.run_prompt(line)

    def _tell_broken_plugins(self) -> None:
        warnings = self.registry.warnings
        while warnings:
            self.screen.warn(warnings.pop(0))

    def _command(self, command: Command, argument: str) -> None:
        """Run a command. Raises UserError, with the usage for an argument that it does not take."""
        # Commands name files, and import libraries that end the process in a deleted folder.
        self._warn(leave_missing_folder())
        if command.forms.takes_text and offer_help_for_command(self, argument):
            return
        try:
            command.run(self, command.parse(argument))
        except UsageError as error:
            message = _("{error} · usage: {usage}", error=error, usage=command.usage)
            raise UserError(message) from None
        finally:
            self.screen.end_working()  # of a pass that was ended

    def is_command(self, line: str) -> bool:
        """Tell whether a line is a command: `:word`, or `/word` as in other chat programs."""
        word = line[1:].split(maxsplit=1)[:1]
        return line.startswith(":") or (
            line.startswith("/") and bool(word) and self.registry.has(word[0])
        )

    def require_model(self) -> LoadedModel:
        """Return the open model, waiting for it if it is still loading.

        Raises UserError if there is none, or if Ctrl-C ended the waiting.
        """
        workspace = self.session.workspace
        if workspace.loading is not None:
            self._await_model(workspace.loading)
        if workspace.model is None:
            missing = (
                _("{path} does not exist", path=safe_line(str(workspace.path)))
                if workspace.writable_path and not exists(workspace.writable_path)
                else _("no model yet")
            )
            raise UserError(
                _(
                    "{missing}: `:train CORPUS` creates one, `:load hangul` opens a built-in one",
                    missing=missing,
                )
            )
        self.show_notes_once(workspace.model)
        return workspace.model

    def _await_model(self, loading: ModelFuture) -> None:
        """Wait for the model that is loading, and make it the open one. Raises UserError."""
        workspace = self.session.workspace
        try:
            self.wait_for_model(loading, workspace.path)
        except UserError:
            if not workspace.is_loading:  # it failed; Ctrl-C ends only the wait
                workspace.forget_failed_load()
            raise
        workspace.finish_loading()

    def show_notes_once(self, model: LoadedModel) -> None:
        """Show, once for each model, what its files leave open and what is assumed."""
        if model.checkpoint.notes != self.session.workspace.shown_notes:
            self.session.workspace.shown_notes = model.checkpoint.notes
            for note in model.checkpoint.notes:
                self.screen.warn(note)

    def wait_for_model(self, loading: ModelFuture, path: Path | None) -> LoadedModel:
        """Wait for a model that is being loaded, and return it.

        Raises UserError if that fails, or if Ctrl-C ends the wait.
        """
        what = _("loading {name}", name=safe_line(checkpoint_title(path)) if path else "")
        with self.screen.waiting(what) as update:
            while not wait([loading], 0.05).done:
                share = loading.fraction_read
                update(f"{what}  {share:.0%}" if 0 < share < 1 else what)
                if self.interrupted():
                    raise UserError(_("stopped waiting for the model to load"))
        return loading.result()

    def encode(self, model: LoadedModel, text: str, *, start: bool = True) -> list[int]:
        """Return the ids of a text; warn about what is not in the vocabulary.

        `ids:1 403` is these ids. Raises UserError if nothing of the text is in the vocabulary.
        """
        tokenizer, special = model.checkpoint.tokenizer, self.session.settings.special
        given = typed_ids(tokenizer, text)
        if given is not None:
            return given
        ids = tokenizer.encode(text, add_special=start, parse_special=special)
        self._warn(unknown_text_warning(tokenizer, text, ids, is_empty=not ids))
        return ids

    def start_chat_turn(self, model: LoadedModel, text: str, *, is_first: bool = False) -> int:
        """Start a turn in which the model answers; warn about what is not in the vocabulary. Return
        how many of the oldest turns the model no longer sees. `is_first` begins a new conversation.

        Raises UserError, with no turn started, if nothing of the text is in the vocabulary.
        """
        conversation = self.session.conversation
        dropped_turns = conversation.start_chat_turn(
            model, text, self.session.settings, is_first=is_first
        )
        try:
            self._warn(unknown_text_warning(model.checkpoint.tokenizer, text, conversation.ids))
        except UserError:
            conversation.undo()  # the warning needs the ids of the turn, so it was started first
            raise
        return dropped_turns

    def _warn(self, warning: str | None) -> None:
        if warning:
            self.screen.warn(warning)

    def run_prompt(self, text: str) -> None:
        """Let the model answer a message, or complete a text. Raises UserError."""
        if not text.strip():
            return
        try:
            model = self.require_model()
            if offer_help(self, text, model):
                return
            whole = self._with_files(model, text)
            if whole != text and offer_help(self, whole, model):
                return
            chats = is_chatting(model, self.session.settings.chat)
            # Ids are the whole input: no template goes around them.
            chats = chats and typed_ids(model.checkpoint.tokenizer, whole) is None
            if not chats:
                ids = self.encode(model, whole)
                self.session.conversation.start_turn(ids, self.session.settings)
        except UserError:
            self.echo(text, "\n")
            raise
        if chats or whole != text:  # what a file says is not shown again
            self.echo(text, "\n")
        if chats:
            self._note_dropped_turns(model, self.start_chat_turn(model, whole))
        self.session.conversation.attached.clear()
        respond(self, model, "" if chats else PROMPT, echo=whole == text)

    def _with_files(self, model: LoadedModel, text: str) -> str:
        """Return a prompt with the texts of the files that it mentions, after those of `:read`.

        Files are read where a person types: what a script sends may be somebody else's text. Raises
        UserError for a file that cannot be read.
        """
        if self.screen.interactive:
            text = fill_in(text, self.screen.note, partial(self.tell_file, model))
        return "\n".join([*self.session.conversation.attached, text])

    def tell_file(self, model: LoadedModel, file: ReadFile) -> None:
        """Say how long the text of a file is for the model."""
        tokens = model.checkpoint.tokenizer.encode(file.text, add_special=False)
        for line in (*file.notes, file.describe(len(tokens))):
            self.screen.note(line)

    def _note_dropped_turns(self, model: LoadedModel, turns: int) -> None:
        if turns:
            from minillm_repl.render.generation import dropped_turns_note

            context = model.decoder.context_length
            free = reserved_answer_tokens(context, self.session.settings)
            self.screen.note(dropped_turns_note(turns, free, context))

    def show_text(self, model: LoadedModel) -> None:
        """Show the text so far; in a chat, the last message."""
        text = self.session.conversation.last_text(model.checkpoint.tokenizer)
        self.screen.out.print(Text(safe(text) or _("(no text)")), soft_wrap=True)

    def echo(self, text: str, end: str, prefix: str = PROMPT) -> None:
        """Print a typed text again where the prompt line was; a script has no prompt lines."""
        shown = Text.assemble((prefix if self.screen.interactive else "", "bold"), safe(text))
        self.screen.out.print(shown, end=end, soft_wrap=True)
