"""Where in a text a view looks: `@43`, `@-3`, `@Seoul`, `@Seoul:2`."""

import re
from dataclasses import dataclass

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.repl.arguments import INDEX, Argument, Values
from minillm_repl.repl.quoting import mask_quoted, split_word

_POSITION = re.compile(rf"-?{INDEX}")
_TOKEN = re.compile(rf"(.+?)(?::({INDEX}))?", re.DOTALL)
_PLACE = re.compile(r"(?:^|\s)@(\S*)")


@dataclass(frozen=True)
class Place:
    """A position of a text, or where a token of it was predicted."""

    position: int | None = None  # counted from 0, or from the end if negative
    token: str = ""  # as it is typed; the place is the position before it
    number: int = 0  # which of several such tokens, from 1; 0: the last

    def __bool__(self) -> bool:
        """Tell whether a place was typed."""
        return self.position is not None or bool(self.token)


def parse_place(text: str) -> Place:
    """Parse a place without its @: `43`, `-3`, `Seoul`, `Seoul:2`. Raises UsageError."""
    if not text:
        raise UsageError(_("a position or a token is missing after @"))
    if _POSITION.fullmatch(text):
        return Place(position=int(text))
    found = _TOKEN.fullmatch(text)
    assert found is not None
    return Place(token=found[1], number=int(found[2] or 0))


class PlaceArgument(Argument):
    """A place, marked with @ wherever it stands; `bare` also takes `3` or `-1` in its order."""

    def __init__(self, *, bare: bool = False) -> None:
        super().__init__("@PLACE", {"place": Place()})
        self.bare = bare

    def find(self, text: str) -> tuple[Values, str]:
        """Take a word that begins with @ out of a text, if there is one outside quotes."""
        found = _PLACE.search(mask_quoted(text))
        if found is None:
            return {}, text
        place = parse_place(text[slice(*found.span(1))])
        return {"place": place}, text[: found.start()] + text[found.end() :]

    def take(self, text: str) -> tuple[Values, str]:
        """Read `3` or `-1`."""
        first, rest = split_word(text)
        is_place = bool(_POSITION.fullmatch(first))
        return ({"place": parse_place(first)}, rest) if is_place else ({}, text)
