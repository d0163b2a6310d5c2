"""Draws an answer with its thoughts apart: dim above it, or one line in place of them."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Literal

from minillm_repl.chat.thinking import Piece, ThoughtSplitter
from minillm_repl.generate import AnswerEvent, Finished, Inserted, Step
from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES, Screen
from minillm_repl.render.generation import Stream


def draw_thinking(
    events: Iterable[AnswerEvent],
    screen: Screen,
    splitter: ThoughtSplitter,
    before: str = "",
    *,
    is_hidden: bool,
) -> Finished:
    """Draw a generation as running text after `before`; the line is left open.

    Thoughts are dim, or hidden: then a moving line counts them, and one line stays.
    """
    printer, shown = _Printer(Stream(screen, before), screen, splitter, is_hidden=is_hidden), 0
    try:
        for event in events:
            if isinstance(event, Finished):
                printer.take([*splitter.feed(event.text[shown:]), *splitter.finish()])
                return event
            if isinstance(event, Step):
                printer.take(splitter.feed(event.text, event.id))
                shown += len(event.text)
            elif isinstance(event, Inserted):
                printer.take(splitter.feed(event.text))
                shown += len(event.text)
    finally:
        printer.close()
    raise AssertionError("a generation ends with Finished")


def thought_count(n_tokens: int) -> str:
    """Return `12 tokens of thought`."""
    return _n("{n:,} token of thought", "{n:,} tokens of thought", n_tokens)


def _say_nothing(_text: str) -> None:
    """Stand in for the moving line while there is none."""


class _Printer:
    def __init__(
        self, stream: Stream, screen: Screen, splitter: ThoughtSplitter, *, is_hidden: bool
    ) -> None:
        self._stream, self._screen, self._splitter = stream, screen, splitter
        self._is_hidden, self._waiting = is_hidden, ExitStack()
        # The newlines around a block belong to the tags: at the start, and in the gap after it.
        self._phase: Literal["start", "thought", "gap", "answer"] = "start"
        self._update: Callable[[str], None] = _say_nothing

    def take(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if piece.is_thought:
                self._think(piece.text)
            else:
                self._answer(piece.text)
        if self._phase == "thought":
            self._update(thought_count(self._splitter.n_tokens))

    def close(self) -> None:
        self._stream.flush()
        self._waiting.close()

    def _think(self, text: str) -> None:
        if self._phase == "start":
            text = text.lstrip("\n")
            if text and self._is_hidden:
                waiting = self._screen.waiting(thought_count(0))
                self._update = self._waiting.enter_context(waiting)
            self._phase = "thought" if text else "start"
        if not self._is_hidden:
            self._stream.add(text, FIGURES)

    def _answer(self, text: str) -> None:
        if self._phase == "thought":
            self._end_thought()
            self._phase = "gap"
        if self._phase == "gap":
            text = text.lstrip("\n")
        self._phase = "answer" if text else self._phase
        self._stream.add(text)

    def _end_thought(self) -> None:
        count = thought_count(self._splitter.n_tokens)
        if self._is_hidden:
            self._waiting.close()
            self._screen.note(_("▸ {count}, hidden", count=count))
            return
        if not self._splitter.text.endswith("\n"):
            self._stream.add("\n", FIGURES)
        self._stream.flush()
        self._screen.note(f"▴ {count}")
