"""What stands after a command: which of it is quoted text, and which are options.

Options count only outside quotes.
"""

import re
from dataclasses import dataclass

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.settings import SettingsT, change, default_of, specs

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_QUOTED = "\x01"  # stands for each character inside quotes while options are looked for
_JSON = re.compile(r"(?:^|\s)--json(?:\s+(\S+))?(?=\s|$)")
_OVERWRITE = re.compile(r"(?:^|\s)--overwrite(?=\s|$)")
_OPTION = re.compile(r"(?:^|\s)(--[a-z][\w-]*)")
_PLACE = re.compile(
    r"[@#+-]*\d|[lh]\d|(?:layer|head|position|pos|neuron|key|층|헤드|위치|뉴런)(?=[\s=:.\d]|$)|[a-z]+="
    r"|(?:all|last|first|end|처음|마지막|끝|전체)$",
    re.IGNORECASE,
)


def quoted(text: str) -> list[tuple[int, int]]:
    """Return where quoted texts begin and end in `text`, their quotes included.

    A quote opens after a space and closes before one; those inside it nest. A `"` that nothing
    closes opens one that reaches to the end: what follows it was meant as text.
    """
    found, place = [], 0
    while place < len(text):
        end = _closed(text, place) if text[place] in _QUOTES and _begins(text, place) else 0
        if end:
            found.append((place, end))
        place = end or place + 1
    return found


def _begins(text: str, place: int) -> bool:
    return place == 0 or text[place - 1].isspace()


def _closed(text: str, start: int) -> int:
    """Return where the quoted text that opens at `start` ends; 0 if none does."""
    opening, closing, depth, last = text[start], _QUOTES[text[start]], 1, 0
    for place in range(start + 1, len(text)):
        if text[place] == closing and (place + 1 == len(text) or text[place + 1].isspace()):
            depth, last = depth - 1, place + 1
            if not depth:
                return last
        elif text[place] == opening and _begins(text, place):
            depth += 1
    return last or (len(text) if opening == '"' else 0)


def masked(text: str) -> str:
    """Return `text` with each character of its quoted parts replaced: as long as before, and
    without options.
    """
    for start, end in quoted(text):
        text = text[:start] + _QUOTED * (end - start) + text[end:]
    return text


def parted(text: str, mark: str) -> tuple[str, bool, str]:
    """Split a text at the only `mark` outside quotes: what is before it, whether it is there, what
    is after it.

    Raises Misunderstood if it is there twice.
    """
    before, found, after = masked(text).partition(mark)
    if mark in after:
        raise Misunderstood(
            _("{mark} is there twice: a text that has it needs quotes", mark=mark.strip())
        )
    start = len(text) - len(after) if found else len(text)
    return text[: len(before)], bool(found), text[start:]


@dataclass(frozen=True)
class Output:
    """Where the numbers of a view go, and whether they may replace what lies there."""

    file: str = ""
    overwrite: bool = False


SCREEN = Output()


def take_output(argument: str) -> tuple[str, Output]:
    """Take `--json FILE` and `--overwrite` out of what follows a command.

    Raises Misunderstood for other options.
    """
    found = _JSON.search(masked(argument))
    file = argument[slice(*found.span(1))] if found and found[1] else ""
    if found and not file:
        raise Misunderstood(
            _("--json needs a file: `--json view.json`, or `--json -` for the screen")
        )
    rest = argument[: found.start()] + argument[found.end() :] if found else argument
    rest, overwrite = take_overwrite(rest)
    other = _OPTION.search(masked(rest))
    if other:
        raise Misunderstood(
            _("{word} is no option here: a text that has it needs quotes", word=safe_line(other[1]))
        )
    if overwrite and not file:
        raise Misunderstood(_("--overwrite goes with --json FILE"))
    return rest.strip(" "), Output(file, overwrite)


def take_overwrite(argument: str) -> tuple[str, bool]:
    """Take `--overwrite` out of what follows a command; return the rest, and whether it was
    there.
    """
    found = _OVERWRITE.search(masked(argument))
    return (
        (argument[: found.start()] + argument[found.end() :], True) if found else (argument, False)
    )


def with_options(text: str, options: SettingsT) -> tuple[str, SettingsT]:
    """Take words such as `layer=2` out of a text, where they stand outside quotes; return the rest,
    and the options.

    Raises UserError for a value that cannot be, and for a word that is meant as an option and is
    none.
    """
    known = specs(options)
    while found := re.search(r"(?:^|\s)([a-z]+)=(\S*)", masked(text)):
        name, value = found[1], text[slice(*found.span(2))]
        if name not in known:
            there = ", ".join(f"{each}=" for each in known)
            word = safe_line(found[0].strip())
            raise Misunderstood(
                _(
                    "{word} is no option here: there is {there}; a text that has it needs quotes",
                    word=word,
                    there=there,
                )
            )
        text, options = (
            text[: found.start()] + text[found.end() :],
            change(options, name, value, said=name),
        )
    numeric = [name for name in known if not isinstance(default_of(options, name), str)]
    if numeric and (
        bare := re.search(rf"(?:^|\s)({'|'.join(numeric)})\s+[-+.\d]+(?=\s|$)", masked(text))
    ):
        raise Misunderstood(
            _(
                "{name} is written with =, as in {name}=2; a text that has it needs quotes",
                name=bare[1],
            )
        )
    return text, options


def check_no_place(text: str) -> None:
    """Raise Misunderstood for a text without quotes that begins like a layer, a head, a position
    or an option.
    """
    if _PLACE.match(text):
        first = safe_line(text.split(maxsplit=1)[0][:20])
        raise Misunderstood(
            _("{word} is not understood here: a text that begins so needs quotes", word=first)
        )
