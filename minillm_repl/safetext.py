"""Makes untrusted text harmless on a terminal: model output, names of tensors and files, errors.

Each character is judged by itself, so nothing is gained by splitting an escape sequence over two
tokens: its first character never reaches the terminal, and what follows is ordinary text.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, cycle

# Controls, format characters (bidirectional overrides, invisible joiners), lone surrogates, line
# separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# A newline and a tab are text. The joiners build emoji families and are part of several scripts;
# they move nothing.
_HARMLESS = frozenset({"\n", "\t", "\u200c", "\u200d"})
_DELETE = 0x7F
# tags and selectors: invisible, and able to carry a message
_INVISIBLE = re.compile("[\U000e0000-\U000e0fff]")
# Joiners, selectors of a picture or a text, skin tones after something.
_JOINER = re.compile("[\u200c\u200d\ufe0e\ufe0f]|(?!^)[\U0001f3fb-\U0001f3ff]")
_REGIONAL_INDICATORS = {0x1F1E6 + n: chr(ord("Ａ") + n) for n in range(26)}  # the letters of flags
_NEVER_JOINED = re.compile("[\0-\u02ff가-힣]*")  # no character of these joins another
SPACE, NEWLINE, TAB = "␣", "⏎", "␉"
# what surrogateescape makes of bytes that are not UTF-8
_STRAY_BYTES = re.compile("([\udc80-\udcff]+)")


def _escape_character(character: str) -> str:
    """A character as itself if harmless, else as a picture (`␛`) or its number (`<U+202E>`)."""
    code = ord(character)
    unsafe = unicodedata.category(character) in _UNSAFE_CATEGORIES or _INVISIBLE.match(character)
    if character in _HARMLESS or not unsafe:
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == _DELETE else f"<U+{code:04X}>"


def safe(text: str) -> str:
    """Return `text` with all that could steer a terminal made visible; newlines and tabs stay."""
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(map(_escape_character, text))


def safe_line(text: str) -> str:
    """Return `text` on one line: as `safe`, with newlines shown as `⏎` and tabs as `␉`."""
    return safe(text).replace("\n", NEWLINE).replace("\t", TAB)


def strip_joiners(text: str, *, visible: bool = False) -> str:
    """Return a text as wide on every terminal: what joins characters is left out, or `told`.

    Terminals do not agree how wide a family, a flag or a skin tone is, nor whether it is one.
    """
    if _NEVER_JOINED.fullmatch(text):
        return text
    normalised = unicodedata.normalize("NFC", text).translate(_REGIONAL_INDICATORS)
    return _JOINER.sub(lambda found: f"<U+{ord(found[0]):04X}>" if visible else "", normalised)


def graphemes(text: str) -> Iterator[str]:
    """Yield what a reader takes for a character each: a letter with marks, a flag, a family."""
    if _NEVER_JOINED.fullmatch(text):
        yield from text
        return
    from wcwidth import iter_graphemes

    yield from iter_graphemes(text)


def expand_to_graphemes(pieces: Iterable[str], text: str) -> list[str]:
    """Return pieces of a text as a reader sees them: in place of a part of a character, the
    whole of it.
    """
    clusters = dict.fromkeys(graphemes(unicodedata.normalize("NFC", text)))
    wholes = ([each for each in clusters if piece in each] or [piece] for piece in pieces)
    return [*dict.fromkeys(chain.from_iterable(wholes))]


def show_token(token: bytes) -> str:
    r"""Return a token made visible for a table cell: spaces and newlines drawn, bytes of a part of
    a character as hex.

    >>> show_token(b" \xea\xb0")
    '␣<EA B0>'
    """
    pieces = _STRAY_BYTES.split(token.decode("utf-8", "surrogateescape"))
    return "".join(
        f"<{piece.encode('utf-8', 'surrogateescape').hex(' ').upper()}>"
        if stray
        else strip_joiners(safe_line(piece), visible=True).replace(" ", SPACE)
        for stray, piece in zip(cycle((False, True)), pieces, strict=False)
    )
