"""The history of the prompt line, and its completions."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from minillm_repl.language import _
from minillm_repl.repl.registry import Command, Registry, normalise_name
from minillm_repl.safetext import safe, safe_line, strip_joiners
from minillm_repl.storage.paths import SUFFIX


def open_history(path: Path | None) -> History:
    """Return the history of a file that only its owner may read; without such a file, one in
    memory.
    """
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0), 0o600
        )
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return InMemoryHistory()  # /dev/null, say: nothing to read, and not ours to change
            if hasattr(os, "geteuid") and status.st_uid == os.geteuid():
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return InMemoryHistory()  # a home that cannot be written must not keep anyone from typing
    return SafeFileHistory(str(path))


class SafeFileHistory(FileHistory):
    """A history file that is safe to print, and that tolerates a full disk."""

    def store_string(self, string: str) -> None:
        """Append a line with unsafe characters replaced; one that cannot be written is kept in
        memory.
        """
        with suppress(OSError):
            super().store_string(safe(string))


class LineCompleter(Completer):
    """Completes commands after a colon, and what each command takes."""

    def __init__(self, registry: Registry, list_models: Callable[[], Iterable[str]]) -> None:
        self._registry, self._models = registry, list_models
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield completions for the text before the cursor; none for a prompt."""
        text = document.text_before_cursor
        if not text.startswith(":") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for spelling, each in self._names(name):
                if spelling.startswith(normalise_name(name)):
                    yield Completion(
                        spelling, -len(name), display=":" + spelling, display_meta=_(each.summary)
                    )
            return
        if self._registry.has(name):
            yield from self._arguments(self._registry.get(name), argument, complete_event)

    def _names(self, typed: str) -> Iterator[tuple[str, Command]]:
        """Yield the spellings of all commands; the Korean ones only once something is typed."""
        for each in self._registry:
            yield from (
                (spelling, each) for spelling in (each.name, *(each.korean_names if typed else ()))
            )

    def _arguments(
        self, command: Command, argument: str, event: CompleteEvent
    ) -> Iterable[Completion]:
        words, completion = list(command.words), command.forms.completion
        match completion:
            case "command":
                words += [spelling for spelling, _each in self._names(argument)]
            case "checkpoint":
                words += self._models()
        last = Document(argument.rpartition(" ")[2])
        yield from WordCompleter(sorted(words), WORD=True).get_completions(last, event)
        if completion in ("file", "checkpoint"):
            yield from self._files(Document(argument), event, completion == "checkpoint")

    def _files(
        self, document: Document, event: CompleteEvent, checkpoints: bool
    ) -> Iterable[Completion]:
        for completion in self._paths.get_completions(document, event):
            name = completion.display_text
            if not checkpoints or name.endswith(("/", SUFFIX)):
                yield Completion(
                    completion.text,
                    completion.start_position,
                    display=strip_joiners(safe_line(name)),
                )
