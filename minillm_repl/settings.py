"""Settings as frozen dataclasses: each field knows how to parse, limit and explain its value.

One description serves the `:set` table, a colon-command, a command-line flag, a `MINILLM_*`
variable, a line of the configuration file and `:train`'s `name=value`.
"""

import dataclasses
import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

_LARGEST = 10**9  # whole number, where nothing else is the limit
Parser = Callable[[str], Any]
"""Takes what the user typed and returns the value, or raises ValueError with what is expected (`a
number from 0 to 1`)."""


@dataclass(frozen=True)
class Spec:
    """What a setting is: its parser, one line of help, and how to say its special values."""

    parse: Parser
    help: str
    details: str = ""  # the definition, for those who ask
    metavar: str = "N"
    unit: str = ""
    aliases: tuple[str, ...] = ()
    # words that stand for a value: {"off": 0}
    special_values: Mapping[str, Any] = field(default_factory=dict)


_TO_QUOTE = re.compile(r"""[\s'"]""")

SettingsT = TypeVar("SettingsT")


# `help` is the field's usual word.
def setting(default: Any, parse: Parser, help: str, **more: Any) -> Any:  # noqa: A002
    """Declare one field of a settings dataclass."""
    return field(default=default, metadata={"spec": Spec(parse, help, **more)})


def integer(low: int, high: int = _LARGEST) -> Parser:
    """Parse a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            if high < _LARGEST or value > high:
                raise ValueError(_("a whole number from {low} to {high:,}", low=low, high=high))
            raise ValueError(_("a whole number, at least {low}", low=low))
        return value

    return parse


def number(low: float, high: float, *, above: bool = False) -> Parser:
    """Parse a finite number from `low` to `high`; with `above` it must be greater than `low`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low):
            raise ValueError(
                _("a number above {low:,.10g}, at most {high:,.10g}", low=low, high=high)
                if above
                else _("a number from {low:,.10g} to {high:,.10g}", low=low, high=high)
            )
        return value

    return parse


def one_of(*choices: str) -> Parser:
    """Parse one of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(_("one of {words}", words=", ".join(choices)))
        return text

    return parse


def file_or(*words: str) -> Parser:
    """Parse the name of a file, or one of a few words."""

    def parse(text: str) -> str:
        if not text.strip():
            raise ValueError(_("a file, or {words}", words=", ".join(words)))
        return text

    return parse


def switch(_text: str) -> Any:
    """Refuse everything: a switch is what its words say, and nothing else."""
    raise ValueError


def strings(text: str) -> tuple[str, ...]:
    r"""Parse words, quoted where they hold spaces; `\n` and `\t` stand for a newline and a tab."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        words = [word.replace("\\n", "\n").replace("\\t", "\t") for word in lexer]
    except ValueError:
        raise ValueError(_("words with balanced quotes")) from None
    return tuple(word for word in words if word)


def specs(settings: Any) -> dict[str, Spec]:
    """Return all settings of a dataclass or its instance, by the name users type (`top-k`)."""
    return {_public(entry.name): entry.metadata["spec"] for entry in dataclasses.fields(settings)}


def find(settings: Any, name: str) -> tuple[str, Spec]:
    """Return the full name and the description of the setting that the user calls `name`.

    Raises UserError.
    """
    known = specs(settings)
    for full, spec in known.items():
        if unicodedata.normalize("NFC", name).replace("_", "-") in (full, *spec.aliases):
            return full, spec
    raise UserError(
        _(
            "no setting {name!r}; available: {names}",
            name=safe_line(name),
            names=", ".join(known),
        )
    )


def value_of(settings: Any, name: str) -> Any:
    """Return the value of the setting that users call `name`."""
    return getattr(settings, _private(name))


def default_of(settings: Any, name: str) -> Any:
    """Return the value that the setting has when nobody sets it."""
    return next(
        entry.default for entry in dataclasses.fields(settings) if entry.name == _private(name)
    )


def change(
    settings: SettingsT, name: str, text: str, *, display_name: str | None = None
) -> SettingsT:
    """Return `settings` with the setting `name` set to what `text` says.

    `said` is how the user named it (`--top-k`), for the message. Raises UserError, leaving
    everything as it was.
    """
    full, spec = find(settings, name)
    value = parse_value(spec, display_name or full, text)
    return dataclasses.replace(settings, **{_private(full): value})  # type: ignore[type-var]


def parse_value(spec: Spec, name: str, text: str) -> Any:
    """Return the value that a text stands for. Raises UserError with `name` and what is needed."""
    text = text.strip()
    try:
        return (
            spec.special_values[text.lower()]
            if text.lower() in spec.special_values
            else spec.parse(text)
        )
    except ValueError as error:
        words = [str(error)] if spec.parse is not switch else []
        expected = (_(", or ") if words else _(" or ")).join([*words, *spec.special_values])
        raise UserError(
            _(
                "{name} needs {wanted}, not {value!r}",
                name=name,
                wanted=expected,
                value=safe_line(text),
            )
        ) from None


def format_value(spec: Spec, value: Any) -> str:
    """Return a value as the user would type it."""
    for word, meaning in spec.special_values.items():
        if value == meaning and type(value) is type(meaning):
            return word
    if isinstance(value, tuple):
        words = (word.replace("\n", "\\n").replace("\t", "\\t") for word in value)
        return safe_line(
            " ".join(shlex.quote(word) if _TO_QUOTE.search(word) else word for word in words)
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def _public(name: str) -> str:
    return name.replace("_", "-")


def _private(name: str) -> str:
    return name.replace("-", "_")
