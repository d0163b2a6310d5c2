"""What stands after a command: which of it is quoted text, and which are options.

Options count only outside quotes.
"""

import re
from dataclasses import dataclass

from minillm_repl.errors import UsageError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}  # phones and word processors type the last two
_METAVARS = (  # words of a usage line that stand for what is typed; single letters stay
    N_("COMMAND"), N_("CORPUS"), N_("FILE"), N_("FOLDER"), N_("HEAD"), N_("HOW"),
    N_("KIND"), N_("LANG"), N_("LAYER"), N_("LESSON"), N_("NAME"), N_("NAMES"), N_("NEURON"),
    N_("PART"), N_("PATH"), N_("PLACE"), N_("PROMPT"), N_("TEXT"), N_("TOKEN"), N_("VALUE"),
    N_("VARIANT"), N_("WHEN"), N_("WHERE"), N_("SHELL"), N_("TOPIC"),
)  # fmt: skip
_METAVAR = re.compile(rf"\b(?:{'|'.join(_METAVARS)})\b")
_QUOTED = "\x01"  # stands for each character inside quotes while options are looked for
_FILE = re.compile(r"(?:^|\s)--(json|csv)(?:\s+(\S+))?(?=\s|$)")
_OVERWRITE = re.compile(r"(?:^|\s)--overwrite(?=\s|$)")
_OPTION = re.compile(r"(?:^|\s)(--[a-z][\w-]*)")
# A text without quotes that begins like an argument was probably meant as one.
_LOOKS_LIKE_ARGUMENT = re.compile(
    r"[@#+-]*\d|[lh]\d|(?:layer|head|position|pos|neuron|key|층|헤드|위치|뉴런)(?=[\s=:.\d]|$)|[a-z]+="
    r"|(?:all|last|first|end|처음|마지막|끝|전체)$",
    re.IGNORECASE,
)


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Return where quoted texts begin and end in `text`, their quotes included.

    A quote opens after a space and closes before one; those inside it nest. A `"` that nothing
    closes opens one that reaches to the end: what follows it was meant as text.
    """
    found, place = [], 0
    while place < len(text):
        end = (
            _quote_end(text, place)
            if text[place] in _QUOTES and _can_open_quote(text, place)
            else 0
        )
        if end:
            found.append((place, end))
        place = end or place + 1
    return found


def _can_open_quote(text: str, place: int) -> bool:
    return place == 0 or text[place - 1].isspace()


def _quote_end(text: str, start: int) -> int:
    """Return where the quoted text that opens at `start` ends; 0 if none does."""
    opening, closing, depth, last = text[start], _QUOTES[text[start]], 1, 0
    for place in range(start + 1, len(text)):
        if text[place] == closing and (place + 1 == len(text) or text[place + 1].isspace()):
            depth, last = depth - 1, place + 1
            if not depth:
                return last
        elif text[place] == opening and _can_open_quote(text, place):
            depth += 1
    # An apostrophe that nothing closes is a letter: `'tis`.
    return last or (len(text) if opening == '"' else 0)


def mask_quoted(text: str) -> str:
    """Return `text` with its quoted characters replaced: as long as before, without options."""
    for start, end in quoted_spans(text):
        text = text[:start] + _QUOTED * (end - start) + text[end:]
    return text


def last_quoted(text: str) -> str:
    """Return the part in `"` that ends a text, with its quotes; empty if there is none."""
    start, end = (quoted_spans(text) or [(0, 0)])[-1]
    # A quote that is only opened reaches to the end too.
    is_closed = end == len(text) and end - start >= 2 and text[start] == text[-1] == '"'
    return text[start:end] if is_closed else ""


def unquoted(text: str) -> str:
    """Return a text without the quotes around all of it.

    Raises UsageError if nothing is in them.
    """
    if not text or last_quoted(text) != text:
        return text
    if len(text) == 2:
        raise UsageError(_("the quotes contain no text"))
    return text[1:-1]


def split_outside_quotes(text: str, separator: str) -> tuple[str, bool, str]:
    """Split a text at the only separator outside quotes: before it, whether it is there, after it.

    Raises UsageError if it is there twice.
    """
    # The mask keeps every character's place, so lengths hold for `text` too.
    before, is_found, after = mask_quoted(text).partition(separator)
    if separator in after:
        raise UsageError(
            _("{mark} occurs twice; put a text that contains it in quotes", mark=separator.strip())
        )
    start = len(text) - len(after) if is_found else len(text)
    return text[: len(before)], bool(is_found), text[start:]


@dataclass(frozen=True)
class Output:
    """Where the numbers of a view go, and whether they may replace what lies there."""

    file: str = ""
    overwrite: bool = False
    is_csv: bool = False  # its table as CSV, not all numbers as JSON


TO_SCREEN = Output()


def parse_output(argument: str) -> tuple[str, Output]:
    """Take `--json FILE` or `--csv FILE`, and `--overwrite`, out of what follows a command.

    Raises UsageError for other options.
    """
    found = _FILE.search(mask_quoted(argument))
    file = argument[slice(*found.span(2))] if found and found[2] else ""
    if found and not file:
        raise UsageError(
            _(
                "{option} needs a file name: `{option} view.{kind}`, or `{option} -` for the "
                "screen",
                option=f"--{found[1]}",
                kind=found[1],
            )
        )
    rest = argument[: found.start()] + argument[found.end() :] if found else argument
    rest, overwrite = parse_overwrite(rest)
    other = _OPTION.search(mask_quoted(rest))
    if other:
        raise UsageError(
            _(
                "unknown option {word}; put a text that contains it in quotes",
                word=safe_line(other[1]),
            )
        )
    if overwrite and not file:
        raise UsageError(_("--overwrite needs --json FILE or --csv FILE"))
    return rest.strip(" "), Output(file, overwrite, bool(found and found[1] == "csv"))


def parse_leading_output(argument: str) -> tuple[str, Output]:
    """Take `--json FILE` or `--csv FILE`, and `--overwrite`, out of the start of what follows a
    command, where the rest is a text as it is typed.
    """
    options = re.match(
        r"--(?:json|csv)(?=\s|$)(\s+(\"[^\"]*\"|'[^']*'|\S+))?(\s+--overwrite(?=\s|$))?", argument
    )
    if not options:
        return argument, TO_SCREEN
    return argument[options.end() :].removeprefix(" "), parse_output(options[0])[1]


def parse_overwrite(argument: str) -> tuple[str, bool]:
    """Take `--overwrite` out of what follows a command; return the rest, and if it was there."""
    found = _OVERWRITE.search(mask_quoted(argument))
    return (
        (argument[: found.start()] + argument[found.end() :], True) if found else (argument, False)
    )


def split_word(text: str) -> tuple[str, str]:
    """Split a text into its first word, and what follows."""
    first, *rest = text.split(maxsplit=1) or [""]
    return first, rest[0] if rest else ""


def check_not_argument(text: str) -> None:
    """Raise UsageError for a text without quotes that begins like a layer, a head, a position or
    an option.
    """
    if _LOOKS_LIKE_ARGUMENT.match(text):
        first = safe_line(split_word(text)[0][:20])
        raise UsageError(
            _("unexpected {word}; put a text that starts like that in quotes", word=first)
        )


def translate_usage(usage: str) -> str:
    """Return a usage line, `[LAYER[.HEAD]] [TEXT]`, in the language of the user."""
    return _METAVAR.sub(lambda word: _(word[0]), usage)
