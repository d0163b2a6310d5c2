"""Between the terminal and prompt_toolkit: keys that it does not know, bracketed paste, Ctrl-Z, and
what rich draws.
"""

import io
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic

from prompt_toolkit.application import create_app_session, get_app_or_none, run_in_terminal
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output, create_output
from rich.console import Console, RenderableType

from minillm_repl.render.console import Transcript
from minillm_repl.repl.job_control import write_unbuffered

_PASTE = "\x1b[200~"
# What a terminal sends that is no text: Linux's F1 to F5, keys and reports, the keypad, answers to
# questions.
_SEQUENCE = re.compile(
    r"\x1b\[\[[A-E]|\x1b\[([0-?]*)[ "
    r"-/]*([@-Z\\-~])|\x1bO[@-~]|\x1b[]P_][^\x07\x1b]*(?:\x07|\x1b\\)"
)
_INCOMPLETE_SEQUENCE = re.compile(r"\x1b(?:\[\[?[0-?]*[ -/]*|O|[]P_][^\x07\x1b]*\x1b?)?\Z")
_KEYPAD = {"\x1bOM": "\r", **{f"\x1bO{chr(64 + ord(key))}": key for key in "*+,-./0123456789="}}
_SHIFT, _ALT, _CTRL = 1, 2, 4
_KEY_RELEASE = 3
_ESCAPE_WAIT = 0.05  # seconds in which the rest of a sequence comes, if it is one
# Enter, Tab, Escape and Backspace: what they mean with others, if not what they mean alone.
_EDITING_KEYS = {
    13: {_SHIFT: "\n", _ALT: "\n", _SHIFT | _ALT: "\n"},
    9: {_SHIFT: "\x1b[Z"},
    27: {},
    127: {},
}
# kitty's numbers for them
_KEYPAD_KEYS = dict(zip(range(57399, 57416), "0123456789./*-+\r=", strict=True))


class KeyParser(Vt100Parser):
    """Turns what a terminal sends into keys. A sequence that means no key is dropped, never typed
    into the line.
    """

    _incomplete = ""  # the beginning of a sequence, whose rest has not come

    def feed(self, data: str) -> None:
        """Take what was read. A paste stays as it is."""
        if self._in_bracketed_paste:
            super().feed(data)
            return
        keys, paste, pasted = (self._incomplete + data).partition(_PASTE)
        begun = None if paste else _INCOMPLETE_SEQUENCE.search(keys)
        self._incomplete = begun[0] if begun else ""
        super().feed(
            _SEQUENCE.sub(_legacy, keys[: len(keys) - len(self._incomplete)]) + paste + pasted
        )

    @property
    def holds_escape(self) -> bool:
        """Whether Escape has come, alone or as the beginning of a sequence."""
        return self._incomplete == "\x1b"

    def flush(self) -> None:
        """Take what was held back as it is: nothing more comes, so it was Escape."""
        held, self._incomplete = self._incomplete, ""
        super().feed(held)
        super().flush()


def _legacy(sequence: re.Match[str]) -> str:
    """Return what an old terminal sends for a key, or nothing."""
    whole, values, final = sequence[0], sequence[1] or "", sequence[2]
    known = whole in ANSI_SEQUENCES and not whole.startswith("\x1b[27;")
    # where the cursor is; a click, whose place follows
    if known or final == "R" or (final == "M" and not values):
        return whole
    if not final or not re.fullmatch(r"[\d;:]*", values):
        return _KEYPAD.get(whole, "")
    numbers = [[int(each or 0) for each in part.split(":")] for part in values.split(";")]
    modifiers = numbers[1] if len(numbers) > 1 else [1]
    pressed = max(modifiers[0] - 1, 0) & 7  # not whether Caps Lock or Num Lock is on
    if modifiers[1:2] == [_KEY_RELEASE]:
        return ""
    if final == "u":
        return _character_key(numbers[0], pressed, numbers[2] if len(numbers) > 2 else [])
    if final == "~" and numbers[0] == [27] and len(numbers) == 3:
        return _character_key(numbers[2], pressed, [])
    return _cursor_key(numbers[0][0], pressed, final)


def _cursor_key(number: int, pressed: int, final: str) -> str:
    """Return an arrow or a similar key as prompt_toolkit knows it; some terminals send more."""
    sequences = (
        [f"\x1b[{number};{pressed + 1}{final}"]
        if pressed
        else [f"\x1b[{number}{final}", f"\x1b[{final}"]
    )
    return next((each for each in sequences if each in ANSI_SEQUENCES), "")


def _character_key(codes: list[int], pressed: int, text: list[int]) -> str:
    """Return a key that is sent as a number: CSI u, and xterm's modifyOtherKeys."""
    code, alt = codes[0], "\x1b" if pressed & _ALT else ""
    code = ord(_KEYPAD_KEYS.get(code, "\0")) or code
    if code in _EDITING_KEYS:
        return _EDITING_KEYS[code].get(pressed, alt + chr(code))
    if any(text) or not 32 <= code < 57344:  # its text, if any; else Shift alone, a media key ...
        return "".join(chr(each) for each in text if 32 <= each <= 0x10FFFF)
    shifted = chr(codes[1] if len(codes) > 1 and codes[1] else code).upper()
    character = shifted if pressed & _SHIFT else chr(code)
    if pressed & _CTRL:
        character = chr(code & 31) if 64 <= code < 128 else "\0" if code == 32 else character
    return alt + character


class BracketedPaste:
    """Whether the terminal marks what is pasted: from the first prompt line to the end of the
    program.
    """

    def __init__(self, output: Output) -> None:
        self._on = False
        self._enable = output.enable_bracketed_paste
        output.enable_bracketed_paste = self._enable_paste  # type: ignore[method-assign]
        output.disable_bracketed_paste = lambda: None  # type: ignore[method-assign]

    def _enable_paste(self) -> None:
        self._on = True
        self._enable()

    def disable(self) -> None:
        """Turn it off: another program gets the terminal."""
        if self._on:
            write_unbuffered("\x1b[?2004l")

    def resume(self) -> None:
        """Turn it on again, and draw the prompt line again if one is being typed."""
        app = get_app_or_none()
        if app is not None and app.is_running and app.loop is not None:
            if app._running_in_terminal:  # it was suspended by a key of its own, and sees to it all
                return
            app.input.raw_mode().__enter__()
            # draws it all again; not now, for it may be drawing
            app.loop.call_soon_threadsafe(app._on_resize)
        elif self._on:
            write_unbuffered("\x1b[?2004h")


@contextmanager
def keyboard() -> Iterator[BracketedPaste]:
    """Make everything that reads keys use `KeyParser` while the context lasts."""
    keys, output = create_input(), create_output()
    if hasattr(keys, "vt100_parser"):  # not on Windows
        keys.vt100_parser = KeyParser(keys.vt100_parser.feed_key_callback)
    pasting = BracketedPaste(output)
    with create_app_session(keys, output):
        try:
            yield pasting
        finally:
            pasting.disable()


class EscapeWatch:
    """Finds Esc among the keys that are typed while the model writes; the others wait for the next
    prompt line. Call it to ask whether Esc was pressed since it was asked last.
    """

    def __init__(self, keys: Input) -> None:
        self._keys = keys
        self._seen_at = 0.0  # seconds; 0: no Escape has come

    def __call__(self) -> bool:
        """Tell whether Esc was pressed. Alt and the arrows begin so too, but do not end so."""
        pressed, parser = self._keys.read_keys(), getattr(self._keys, "vt100_parser", None)
        is_escape = False
        if not isinstance(parser, KeyParser):  # Windows, where keys are no sequences
            is_escape = any(each.key == Keys.Escape for each in pressed)
        elif not parser.holds_escape:
            self._seen_at = 0.0
        elif not self._seen_at:
            self._seen_at = monotonic()
        elif monotonic() - self._seen_at > _ESCAPE_WAIT:
            self._keys.flush_keys()
            self._seen_at, is_escape = 0.0, True
        if pressed:
            store_typeahead(self._keys, [*get_typeahead(self._keys), *pressed])
        return is_escape


def suspend(_event: KeyPressEvent) -> None:
    """Do what Ctrl-Z does elsewhere: while keys are read, the terminal sends it as a key."""
    if hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
        run_in_terminal(partial(os.kill, 0, signal.SIGTSTP))  # all of a pipeline stops


def render_ansi(renderables: list[RenderableType], width: int, target: Console) -> ANSI:
    """Return things drawn one below the other, in a width, in the colours that `target` has."""
    buffer = io.StringIO()
    console = Transcript(
        high_contrast=has_high_contrast(target),
        file=buffer,
        force_terminal=True,
        width=width,
        color_system="standard",
        no_color=target.no_color,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for part in renderables:
        console.print(part, no_wrap=True, overflow="crop")
    return ANSI(buffer.getvalue().rstrip("\n"))


def has_high_contrast(target: Console) -> bool:
    """Return whether nothing beside a console may be dim."""
    return isinstance(target, Transcript) and target.high_contrast


def color_depth(target: Console) -> ColorDepth | None:
    """Return the depth for an application beside a console; None leaves it to prompt_toolkit."""
    return ColorDepth.DEPTH_1_BIT if target.no_color else None
