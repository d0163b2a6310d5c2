"""What a command works with, and the two things a line can be: a command, or a prompt."""

from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import RenderableType
from rich.text import Text

from minillm_repl.errors import Misunderstood, UserError
from minillm_repl.language import _, _n
from minillm_repl.render.console import MODEL, Screen
from minillm_repl.repl.model_loading import Loading, Model
from minillm_repl.repl.progress import Progress
from minillm_repl.repl.registry import Command, Registry
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import samplers_text
from minillm_repl.repl.signals import Presses
from minillm_repl.safetext import SPACE, as_read, safe, safe_line
from minillm_repl.storage.paths import there, title
from minillm_repl.tokenizer.base import decode

if TYPE_CHECKING:
    from minillm_repl.generate.events import Finished, Step

PROMPT, CONTINUED = ">>> ", "... "


class Listener(Protocol):
    """What gets each line that is typed while it goes on: a lesson."""

    @property
    def where(self) -> str:
        """Where one is in it, in a few words."""

    @property
    def hint(self) -> str:
        """What it waits for."""

    def take(self, line: str) -> None:
        """Do what a line says. Raises UserError."""


class Leave(Exception):  # noqa: N818 - a wish, not an error
    """The user wants to leave."""


@dataclass
class Shell:
    """A session with a screen to draw on and commands to run."""

    session: Session
    screen: Screen
    registry: Registry
    interrupted: Presses = field(default_factory=partial(Presses, 0))
    progress: Progress = field(default_factory=Progress)  # of the learner
    listener: Listener | None = None
    lesson_began: int = 0  # how much had been printed then
    last_view: Callable[[int], RenderableType] | None = None  # draws it again, into a width
    last_pins: tuple[int, int] = (0, 0)  # rows and columns of it that stay when it is scrolled

    def execute(self, line: str) -> None:
        """Do what a line says, or hand it to whoever listens. Raises UserError."""
        if self.listener is not None:
            self.listener.take(line)
        else:
            self.run(line)

    def run(self, line: str) -> None:
        """Do what a line says: a command after `:`, a literal colon after `::`, else a prompt.

        Raises UserError.
        """
        if line.startswith("::"):
            self.prompt(line[1:])
        elif self.is_command(line):
            name, _, argument = line[1:].lstrip().partition(" ")
            if self.screen.interactive:
                self.echo(line, "\n")
            self._command(self.registry.get(name.strip().lower()), argument)
        else:
            self.prompt(line)

    def _command(self, command: Command, argument: str) -> None:
        """Run a command, and tell how it is used to who asked for it in another way."""
        try:
            if argument.strip() and command.usage == f":{command.name}":
                raise Misunderstood(
                    _("nothing comes after this, not {text!r}", text=safe_line(argument.strip()))
                )
            command.run(self, argument if command.verbatim else argument.strip())
        except Misunderstood as error:
            raise UserError(
                _("{error} · usage: {usage}", error=error, usage=command.usage)
            ) from None

    def is_command(self, line: str) -> bool:
        """Tell whether a line is a command: `:word`, or `/word` if it is one of ours, as other
        chat tools have it.
        """
        word = line[1:].split(maxsplit=1)[:1]
        return line.startswith(":") or (
            line.startswith("/") and bool(word) and self.registry.known(word[0])
        )

    def model(self) -> Model:
        """Return the open model, waiting for it if it is still loading.

        Raises UserError if there is none, or if Ctrl-C ended the waiting.
        """
        session = self.session
        if session.loading_future is not None:
            try:
                self.wait_for(session.loading_future, session.path)
            except UserError:
                if not session.loading:  # it failed; a Ctrl-C only ends the waiting
                    session.forget_failed_load()
                raise
        if session.model is None:
            missing = (
                _("{path} does not exist", path=safe_line(str(session.path)))
                if session.own and session.path and not there(session.path)
                else _("there is no model yet")
            )
            raise UserError(
                _(
                    "{missing}: `:train CORPUS` makes one, `:load hangul` opens one that is "
                    "shipped",
                    missing=missing,
                )
            )
        self.remark(session.model)
        return session.model

    def remark(self, model: Model) -> None:
        """Tell, once, where a model's files do not say what is done."""
        if model.checkpoint.notes != self.session.noted:
            self.session.noted = model.checkpoint.notes
            for note in model.checkpoint.notes:
                self.screen.warn(note)

    def wait_for(self, loading: Loading, path: Path | None) -> Model:
        """Return what is being loaded.

        Raises UserError if that fails, or if Ctrl-C ends the waiting.
        """
        what = _("loading {name}", name=safe_line(title(path)) if path else "")
        with self.screen.waiting(what) as update:
            while not wait([loading], 0.05).done:
                update(f"{what}  {loading.share:.0%}" if 0 < loading.share < 1 else what)
                if self.interrupted():
                    raise UserError(_("stopped waiting for the model to load"))
        return loading.result()

    def encode(self, model: Model, text: str, *, start: bool = True) -> list[int]:
        """Return the ids of a text, saying what the model has never seen.

        Raises UserError if nothing else is in it.
        """
        tokenizer = model.checkpoint.tokenizer
        unknown = tokenizer.unknown(text)
        ids = tokenizer.encode(text, start=start, special=self.session.settings.special)
        if unknown:
            shown = safe_line(", ".join(as_read(unknown[:20], text))) + (
                " …" if len(unknown) > 20 else ""
            )
            if not ids:
                known = "".join(
                    tokenizer.token_bytes(token).decode("utf-8", "replace")
                    for token in range(tokenizer.size)
                )
                raise UserError(
                    _(
                        "the model has never seen {shown}, and nothing else was typed; it "
                        "knows {known}",
                        shown=shown,
                        known=safe_line(known[:60]).replace(" ", SPACE),
                    )
                )
            self.screen.warn(
                _(
                    "the model has never seen {shown}: read as {token}",
                    shown=shown,
                    token=safe_line(becomes),
                )
                if (becomes := tokenizer.unknown_becomes)
                else _("the model has never seen {shown}: skipped", shown=shown)
            )
        return ids

    def ask(self, model: Model, text: str) -> int:
        """Start a turn as the session does, saying what the model has never seen in the text."""
        self.encode(model, text, start=False)
        return self.session.ask(model, text)

    def prompt(self, text: str) -> None:
        """Let the model answer, or complete a new text."""
        if not text.strip():
            return
        session = self.session
        try:
            model = self.model()
            chatting = session.chatting(model)
            if not chatting:
                session.begin(self.encode(model, text))
        except UserError:
            self.echo(text, "\n")
            raise
        if chatting:
            self.echo(text, "\n")
            self._tell_gone(model, self.ask(model, text))
        self.respond(model, "" if chatting else PROMPT)

    def _tell_gone(self, model: Model, turns: int) -> None:
        if turns:
            self.screen.note(
                _n(
                    "the model no longer sees the oldest {n} turn: {free} of its {context} "
                    "tokens are kept for the"
                    " answer",
                    "the model no longer sees the oldest {n} turns: {free} of its {context} "
                    "tokens are kept for the"
                    " answer",
                    turns,
                    context=model.decoder.context,
                    free=self.session.answer_room(model.decoder.context),
                )
            )

    def respond(self, model: Model, lead: str = "", *, echo: bool = True) -> "Finished":
        """Let the model continue the session's text, and draw both: what it was given, and what
        it adds.
        """
        from minillm_repl.render.generation import draw_steps, draw_text, figures

        session, screen = self.session, self.screen
        verbose, turn = session.settings.verbose, session.turns[-1]
        tokenizer = model.checkpoint.tokenizer
        given = session.answer(tokenizer) if turn.asked else decode(tokenizer, session.ids)
        try:
            events = self._events(model, verbose)
        except UserError:
            self.echo(given if echo else "", "\n", lead)
            raise
        if verbose:
            if screen.interactive and given:
                self.echo(given, "\n", lead)
            finished = draw_steps(events, screen, given, samplers_text(session.settings))
            screen.out.print(
                Text.assemble(safe(given), (safe(finished.text), MODEL)), soft_wrap=True
            )
        else:
            if echo:
                self.echo(given, "", lead)
            try:
                finished = draw_text(events, screen)
            finally:
                screen.out.print()  # whatever happened, the next thing has a line of its own
        screen.note(figures(finished, session.seed))
        self.tell_unseen(model)
        return finished

    def tell_unseen(self, model: Model) -> None:
        """Say that the text has outgrown the context, if it has just done so."""
        session, turn = self.session, self.session.turns[-1]
        seen = model.seen(session.ids)
        known = turn.given[: len(turn.before)] == turn.before and model.seen(turn.before).unseen
        if seen.unseen and not turn.asked and not known:
            self.screen.note(
                _(
                    "the text has outgrown the context: of its {tokens} tokens the model "
                    "sees the last {seen}",
                    tokens=len(session.ids),
                    seen=len(seen.ids),
                )
                if not seen.kept
                else _(
                    "the text has outgrown the context: of its {tokens} tokens the model "
                    "sees the start token and the"
                    " last {seen}",
                    tokens=len(session.ids),
                    seen=len(seen.ids) - 1,
                )
            )

    def _events(self, model: Model, top: int) -> "Iterator[Step | Finished]":
        """Return the generation's events; a long prompt is read before anything is drawn, and how
        far it is is told.

        Raises UserError if that fails.
        """
        from minillm_repl.generate.decoder import unread

        window, shared = unread(model.decoder, self.session.ids)
        if len(window) - shared <= model.decoder.piece:
            return self.session.generate(model, self.interrupted, top)
        with self.screen.waiting(_("reading")) as update:
            events = self.session.generate(
                model,
                self.interrupted,
                top,
                lambda done, of: update(_("reading: {done:,} of {of:,} tokens", done=done, of=of)),
            )
            return chain([next(events)], events)

    def show_text(self, model: Model) -> None:
        """Draw the text so far; of a conversation, what was said last."""
        said = self.session.said
        text = said[-1].content if said else decode(model.checkpoint.tokenizer, self.session.ids)
        self.screen.out.print(Text(safe(text) or _("(no text)")), soft_wrap=True)

    def echo(self, text: str, end: str, lead: str = PROMPT) -> None:
        """Write what was typed where the prompt line was; a script has no prompt lines."""
        shown = Text.assemble((lead if self.screen.interactive else "", "bold"), safe(text))
        self.screen.out.print(shown, end=end, soft_wrap=True)
