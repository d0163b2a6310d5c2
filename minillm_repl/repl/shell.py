"""What a command works with, and the two things a line can be: a command, or a prompt."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.render.console import MODEL, Screen
from minillm_repl.repl.registry import Registry
from minillm_repl.repl.session import Model, Session
from minillm_repl.repl.settings import samplers_text
from minillm_repl.safetext import safe, safe_line
from minillm_repl.tokenizer.base import decode

if TYPE_CHECKING:
    from minillm_repl.engine.events import Finished

PROMPT = ">>> "


class Leave(Exception):  # noqa: N818 - a wish, not an error
    """The user wants to leave."""


@dataclass
class Shell:
    """A session with a screen to draw on and commands to run."""

    session: Session
    screen: Screen
    registry: Registry
    interrupted: Callable[[], bool] = field(default=lambda: False)

    def execute(self, line: str) -> None:
        """Do what a line says: a command after `:`, a literal colon after `::`, else a prompt. Raises UserError."""
        if line.startswith("::"):
            self.prompt(line[1:])
        elif self.is_command(line):
            name, _, argument = line[1:].lstrip().partition(" ")
            if self.screen.interactive:
                self._echo(line, "\n")
            command = self.registry.get(name.strip().lower())
            command.run(self, argument if command.verbatim else argument.strip())
        else:
            self.prompt(line)

    def is_command(self, line: str) -> bool:
        """Tell whether a line is a command: `:word`, or `/word` if it is one of ours, as other chat tools have it."""
        word = line[1:].split(maxsplit=1)[:1]
        return line.startswith(":") or (line.startswith("/") and bool(word) and self.registry.known(word[0]))

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
            missing = f"{safe_line(str(session.path))} does not exist" if session.own else "there is no model yet"
            raise UserError(f"{missing}: `:train CORPUS` makes one, `:load nalssi` opens the one that is shipped")
        return session.model

    def wait_for(self, loading: "Future[Model]", path: Path | None) -> Model:
        """Return what is being loaded. Raises UserError if that fails, or if Ctrl-C ends the waiting."""
        with self.screen.waiting(f"loading {safe_line(path.name if path else '')}"):
            while not wait([loading], 0.05).done:
                if self.interrupted():
                    raise UserError("stopped waiting for the model to load")
        return loading.result()

    def encode(self, model: Model, text: str) -> list[int]:
        """Return the ids of a text, saying what the model has never seen. Raises UserError if nothing else is in it."""
        tokenizer = model.checkpoint.tokenizer
        unknown = tokenizer.unknown(text)
        ids = tokenizer.encode(text)
        if unknown:
            shown = ", ".join(safe_line(character) for character in unknown[:20]) + (" …" if len(unknown) > 20 else "")
            if not ids:
                known = "".join(
                    tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(tokenizer.size)
                )
                raise UserError(
                    f"the model has never seen {shown}, and nothing else was typed; it knows {safe_line(known[:60])}"
                )
            self.screen.warn(f"the model has never seen {shown}: skipped")
        return ids

    def prompt(self, text: str) -> None:
        """Let the model complete a new text."""
        if not text.strip():
            return
        try:
            model = self.model()
            ids = self.encode(model, text)
        except UserError:
            self._echo(text, "\n")
            raise
        self.session.begin(ids)
        self.respond(model, PROMPT)

    def respond(self, model: Model, lead: str = "", *, echo: bool = True) -> "Finished":
        """Let the model continue the session's text, and draw both: what it was given, and what it adds."""
        from minillm_repl.render.generation import draw_steps, draw_text, figures

        session, screen = self.session, self.screen
        verbose, before = session.settings.verbose, len(session.ids)
        given = decode(model.checkpoint.tokenizer, session.ids)
        events = session.generate(model, self.interrupted, verbose)
        if verbose:
            if screen.interactive:
                self._echo(given, "\n", lead)
            finished = draw_steps(events, screen, given, samplers_text(session.settings))
            screen.out.print(Text.assemble(safe(given), (safe(finished.text), MODEL)), soft_wrap=True)
        else:
            if echo:
                self._echo(given, "", lead)
            try:
                finished = draw_text(events, screen)
            finally:
                screen.out.print()  # whatever happened, the next thing has a line of its own
        screen.note(figures(finished, session.seed))
        tokens, context = before + finished.tokens, model.decoder.context
        if tokens > context and not session.told_outgrown:
            session.told_outgrown = True
            screen.note(f"the text has outgrown the context: of its {tokens} tokens the model sees the last {context}")
        return finished

    def _echo(self, text: str, end: str, lead: str = PROMPT) -> None:
        """Write what was typed where the prompt line was; a script has no prompt lines."""
        shown = Text.assemble((lead if self.screen.interactive else "", "bold"), safe(text))
        self.screen.out.print(shown, end=end, soft_wrap=True)
