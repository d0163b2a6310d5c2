"""The streams of output, and the colours."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console, ConsoleOptions, NewLine, RenderableType
from rich.control import Control
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from minillm_repl.environment import Environment
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe

# One palette. The model speaks in MODEL; numbers are plain; what matters less is dim; a sign always
# says the same as a colour. Only the sixteen named colours, which every terminal theme keeps
# readable on its own background.
MODEL, CHOSEN, DROPPED, FIGURES, GOOD, WARNING, ERROR = (
    "cyan",
    "bold",
    "dim",
    "dim",
    "green",
    "yellow",
    "bold red",
)
TITLE, SPECIAL = "bold", "magenta"
# For and against: blue-green and yellow, which everyone can tell apart.
POSITIVE, NEGATIVE = "cyan", "yellow"

_MAX_REMEMBERED = 2_000  # times that something was printed: a long visit must not fill the memory


class Transcript(Console):
    """A console that remembers what was printed last, except what only moves (a spinner)."""

    def __init__(self, *, high_contrast: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.high_contrast = high_contrast
        # (objects, options of `print`, width of the console in cells) of each print.
        self._printed: deque[tuple[tuple[Any, ...], dict[str, Any], int]] = deque(
            maxlen=_MAX_REMEMBERED
        )
        self.print_count = 0  # times that something was printed
        self._open_line: Text | None = None  # what was printed last, if the line is still open

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as any console does."""
        self._take_note(objects, options)
        super().print(*(self._with_tabs(each, options) for each in objects), **options)

    def print_wrapped(self, text: Text, wrapped: Text) -> None:
        """Print a text that goes on, as it is broken into lines for the terminal of now; remember
        it as it is.
        """
        options: dict[str, Any] = {"end": "", "soft_wrap": True}
        self._take_note((text,), options)
        super().print(wrapped, **options)

    def _take_note(self, objects: tuple[Any, ...], options: dict[str, Any]) -> None:
        match objects:
            case (Text() as text,) if options.get("end") == "" and self._open_line:
                self._open_line.append_text(text)  # a text that comes in many frames is one thing
            case (Text() as text,) if options.get("end") == "":
                # A copy, because later frames are appended to the remembered text itself.
                self._open_line = text.copy()
                self._remember((self._open_line,), options)
            case _ if not any(isinstance(each, Control | NewLine) for each in objects):
                # these are a spinner's
                self._open_line = None
                self._remember(objects, options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Render as any console does; with high contrast, only in the terminal's own colour."""
        segments = super().render(renderable, options)
        return map(_highest_contrast, segments) if self.high_contrast else iter(segments)

    def replay(self, console: Console, since: int = 0) -> None:
        """Print it again on `console`, from where `print_count` was `since`."""
        for objects, options, _width in self._entries_since(since):
            console.print(*objects, **options)

    def _with_tabs(self, printed: Any, options: dict[str, Any]) -> Any:
        """Return running text for a file or a pipe with its tabs; rich would make them spaces."""
        if (
            isinstance(printed, Text)
            and "\t" in printed.plain
            and options.get("soft_wrap")
            and not self.file.isatty()
        ):
            return Segments(printed.render(self, end=options.get("end", "\n")))
        return printed

    def max_width(self, since: int = 0) -> int:
        """Return the largest width that the console had while it printed what `replay` prints."""
        return max(
            (width for _objects, _options, width in self._entries_since(since)), default=self.width
        )

    def forgotten_count(self, since: int = 0) -> int:
        """Return how many of the things printed from `since` on are no longer remembered."""
        return max(0, self.print_count - len(self._printed) - since)

    def _entries_since(self, since: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], int]]:
        # `print_count` never decreases: the difference has left the deque at its old end.
        gone = self.print_count - len(self._printed)
        return islice(self._printed, max(0, since - gone), None)

    def _remember(self, objects: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._printed.append((objects, options, self.width))
        self.print_count += 1


def _highest_contrast(segment: Segment) -> Segment:
    """Return a segment that is neither dim nor coloured; what had a colour is bold."""
    text, style, control = segment
    if style is None or control:
        return segment
    strong = Style(dim=False, bold=True if style.color else None)
    return Segment(text, style.without_color + strong)


@dataclass(frozen=True)
class _Working:
    """A line that moves while the program works: a `Status` of rich."""

    status: Any
    is_pass: bool  # of `show_working`, not of `waiting`


@dataclass(frozen=True)
class Screen:
    """Two streams: results go to `out`; figures, notes and errors to `err`. At a terminal, all go
    to `out`.
    """

    out: Transcript
    err: Console
    interactive: bool = False  # a person at a terminal: figures and notes appear where they look
    errors: Console | None = None  # where these go if not to `side`
    working: list[_Working] = field(
        default_factory=list
    )  # the line that moves now, if there is one

    @property
    def notes_console(self) -> Console:
        """Where figures and notes go."""
        return self.out if self.interactive else self.err

    @property
    def animated(self) -> bool:
        """Whether spinners may move there: only on a real terminal, even with forced colours."""
        return self.notes_console.is_terminal and self.notes_console.file.isatty()

    def note(self, text: str) -> None:
        """Print a remark of the program. Untrusted parts of it must be safe already."""
        self.notes_console.print(Text(text, FIGURES))

    def warn(self, text: str) -> None:
        """Print what the user should know before they continue."""
        self.notes_console.print(Text.assemble(("! ", WARNING), text))

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show on a terminal that the program works while the context lasts. Call what is yielded
        to change the text.
        """
        if not self.animated:
            yield lambda _share: None
            return
        shown = [text]

        def update(now: str) -> None:
            shown[:] = [now]
            status.update(Text(now, FIGURES))

        self.end_working()  # a terminal has one such line
        with self.notes_console.status(Text(text, FIGURES), spinner="dots") as status:
            self.working.append(_Working(status, is_pass=False))
            try:
                yield update
            except UserError as error:
                if str(error) != _("stopped"):
                    raise
                raise UserError(_("stopped while: {what}", what=shown[0])) from None
            finally:
                self.working.clear()

    def show_working(self, text: str) -> None:
        """Do what `waiting` does, until `end_working`; nothing where a line moves already."""
        if self.animated and not self.working:
            status = self.notes_console.status(Text(text, FIGURES), spinner="dots")
            self.working.append(_Working(status, is_pass=True))
            status.start()

    def update_working(self, text: str) -> None:
        """Change the text of `show_working`."""
        for each in self.working:
            if each.is_pass:
                each.status.update(Text(text, FIGURES))

    def end_working(self) -> None:
        """Take the line of `show_working` away, if there is one."""
        if self.working and self.working[0].is_pass:
            self.working.pop().status.stop()

    def silenced(self) -> "Screen":
        """Return a screen that shows only errors, for the processes beside the one that draws."""
        # Open for as long as the process runs.
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        return Screen(Transcript(file=nowhere), Console(file=nowhere), errors=self.err)

    def fail(self, text: str) -> None:
        """Print an error, as one line."""
        line = Text.assemble((_("error: "), ERROR), safe(text))
        # elsewhere it stays one line
        (self.errors or self.notes_console).print(line, soft_wrap=not self.animated)


def make_console(stream: IO[str], variables: Mapping[str, str], color: str = "auto") -> Transcript:
    """Return a stream's console: colours to a terminal unless NO_COLOR is set, or always, or never.

    `contrast` is for who sees weakly: the terminal's own two colours, and nothing dim.
    No markup, no highlighting, no emoji codes: text from a model means only itself.
    """
    plain = color in ("never", "contrast") or (color == "auto" and bool(variables.get("NO_COLOR")))
    # None: rich asks the stream whether it is a terminal.
    forced = True if color == "always" else None
    return Transcript(
        file=stream,
        force_terminal=forced,
        color_system="standard" if forced else "auto",  # sixteen colours are all the palette has
        no_color=plain,
        high_contrast=color == "contrast",
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def make_screen(environment: Environment, color: str = "auto", interactive: bool = False) -> Screen:
    """Return the screen of an environment."""
    out, err = (
        make_console(stream, environment.variables, color)
        for stream in (environment.stdout, environment.stderr)
    )
    return Screen(out, err, interactive)
