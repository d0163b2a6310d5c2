"""Makes untrusted text harmless on a terminal: model output, names of tensors and files, errors.

Each character is replaced by itself. An escape sequence that is split over two tokens is harmless
too: its first character never reaches the terminal, and the rest is ordinary text.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain

# Controls, format characters (bidirectional overrides), lone surrogates, line separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Newline and tab are text. The joiners build emoji families, and several scripts need them.
_HARMLESS = frozenset({"\n", "\t", "\u200c", "\u200d"})
_DELETE = 0x7F
# Tags and selectors are invisible, and could hide a message.
_INVISIBLE = re.compile("[\U000e0000-\U000e0fff]")
# Joiners, variation selectors, and skin tones after another character.
_JOINER = re.compile("[\u200c\u200d\ufe0e\ufe0f]|(?!^)[\U0001f3fb-\U0001f3ff]")
_REGIONAL_INDICATORS = {0x1F1E6 + n: chr(ord("Ａ") + n) for n in range(26)}  # flags
_NEVER_JOINED = re.compile("[\0-\u02ff가-힣]*")  # each of these is a grapheme
SPACE, NEWLINE, TAB = "␣", "⏎", "␉"
_STRAY_BYTES = re.compile("([\udc80-\udcff]+)")  # surrogateescape: bytes that are not UTF-8


def _escape_character(character: str) -> str:
    """Return a harmless character as it is, another as a symbol (`␛`) or `<U+202E>`."""
    code = ord(character)
    unsafe = unicodedata.category(character) in _UNSAFE_CATEGORIES or _INVISIBLE.match(character)
    if character in _HARMLESS or not unsafe:
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == _DELETE else f"<U+{code:04X}>"


def safe(text: str) -> str:
    """Return `text` with terminal controls made visible; newlines and tabs stay."""
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(map(_escape_character, text))


def safe_line(text: str) -> str:
    """Return `text` on one line: as `safe`, with `⏎` for a newline and `␉` for a tab."""
    return safe(text).replace("\n", NEWLINE).replace("\t", TAB)


def strip_joiners(text: str, *, visible: bool = False) -> str:
    """Return a text that has the same width on every terminal.

    Joiners, selectors and skin tones are removed, or shown as `<U+200D>` with `visible`.
    Terminals disagree on the width of a family, a flag or a skin tone.
    """
    if _NEVER_JOINED.fullmatch(text):
        return text
    normalised = unicodedata.normalize("NFC", text).translate(_REGIONAL_INDICATORS)
    if visible:
        return _JOINER.sub(lambda found: f"<U+{ord(found[0]):04X}>", normalised)
    return _JOINER.sub("", normalised)


def graphemes(text: str) -> Iterator[str]:
    """Yield the grapheme clusters of a text: a letter with marks, a flag, a family."""
    if _NEVER_JOINED.fullmatch(text):
        yield from text
        return
    from wcwidth import iter_graphemes  # most texts need no import

    yield from iter_graphemes(text)


def expand_to_graphemes(pieces: Iterable[str], text: str) -> list[str]:
    """Return pieces of a text, each once, with a part of a grapheme replaced by the graphemes."""
    clusters = dict.fromkeys(graphemes(unicodedata.normalize("NFC", text)))
    found = ([each for each in clusters if piece in each] or [piece] for piece in pieces)
    return [*dict.fromkeys(chain.from_iterable(found))]


def show_token(token: bytes) -> str:
    r"""Return a token for a table cell, with visible spaces and newlines.

    Bytes that are only a part of a character are shown in hex.

    >>> show_token(b" \xea\xb0")
    '␣<EA B0>'
    """
    pieces = _STRAY_BYTES.split(token.decode("utf-8", "surrogateescape"))
    for index, piece in enumerate(pieces):
        if index % 2:  # the pattern's group: every second piece
            stray = piece.encode("utf-8", "surrogateescape")
            pieces[index] = f"<{stray.hex(' ').upper()}>"
        else:
            pieces[index] = strip_joiners(safe_line(piece), visible=True).replace(" ", SPACE)
    return "".join(pieces)
