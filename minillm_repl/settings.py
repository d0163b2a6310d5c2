"""Settings as frozen dataclasses: the metadata of each field parses, limits and explains it.

One `Spec` serves the `:set` table, a colon-command, a command-line flag, a `MINILLM_*` variable, a
line of the configuration file, and `name=value` of `:train`.
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
from minillm_repl.language import _, in_english
from minillm_repl.safetext import safe_line

_LARGEST = 10**9  # of a whole number without a limit of its own
Parser = Callable[[str], Any]
"""Returns the value of a typed text. Raises ValueError with the wanted: `a number from 0 to 1`."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The description of a setting."""

    parse: Parser
    help: str  # one line
    details: str = ""  # the definition, for `:help NAME`
    metavar: str = "N"
    unit: str = ""
    aliases: tuple[str, ...] = ()
    special_values: Mapping[str, Any] = field(default_factory=dict)  # words: {"off": 0}
    example: str = ""  # a value, for the example of `:help NAME`


_NEEDS_QUOTES = re.compile(r"""[\s'"]""")

SettingsT = TypeVar("SettingsT")


# The parameter is called `help` as in argparse.
def setting(default: Any, parse: Parser, help: str, **more: Any) -> Any:  # noqa: A002
    """Declare one field of a settings dataclass; `more` are further fields of its `Spec`."""
    return field(default=default, metadata={"spec": Spec(parse=parse, help=help, **more)})


def integer(low: int, high: int = _LARGEST) -> Parser:
    """Return a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1  # refused below
        if not low <= value <= high:
            if high < _LARGEST or value > high:
                raise ValueError(_("a whole number from {low} to {high:,}", low=low, high=high))
            raise ValueError(_("a whole number, at least {low}", low=low))
        return value

    return parse


def number(low: float, high: float, *, above: bool = False) -> Parser:
    """Return a parser of numbers from `low` to `high`; with `above`, without `low` itself."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # refused below
        if not low <= value <= high or (above and value == low):
            raise ValueError(
                _("a number above {low:,.10g}, at most {high:,.10g}", low=low, high=high)
                if above
                else _("a number from {low:,.10g} to {high:,.10g}", low=low, high=high)
            )
        return value

    return parse


class OneOf:
    """A parser of one of these words."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __call__(self, text: str) -> str:
        """Return the word. Raises ValueError for another."""
        if text not in self.choices:
            raise ValueError(_("one of {words}", words=", ".join(self.choices)))
        return text


def one_of(*choices: str) -> Parser:
    """Return a parser of one of these words."""
    return OneOf(*choices)


def words_of(spec: Spec) -> tuple[str, ...]:
    """Return the words that a setting takes, beside numbers and texts."""
    choices = spec.parse.choices if isinstance(spec.parse, OneOf) else ()
    return tuple(dict.fromkeys((*choices, *spec.special_values)))


def file_or(*words: str) -> Parser:
    """Return a parser of a file name, or one of these words."""

    def parse(text: str) -> str:
        if not text.strip():
            raise ValueError(_("a file, or {words}", words=", ".join(words)))
        return text

    return parse


def switch(_text: str) -> Any:
    """Refuse every text: a switch has only its special values."""
    raise ValueError


def strings(text: str) -> tuple[str, ...]:
    r"""Parse words, with quotes around spaces; `\n` and `\t` are a newline and a tab."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.escape = lexer.commenters = ""  # a backslash or # is an ordinary character
    try:
        words = [word.replace("\\n", "\n").replace("\\t", "\t") for word in lexer]
    except ValueError:
        raise ValueError(_("words with balanced quotes")) from None
    return tuple(word for word in words if word)


def specs(settings: Any) -> dict[str, Spec]:
    """Return all settings of a dataclass or its instance, by the name that users type (`top-k`)."""
    return {_public(entry.name): entry.metadata["spec"] for entry in dataclasses.fields(settings)}


def find(settings: Any, name: str) -> tuple[str, Spec]:
    """Return the full name and the description of a setting by its name or an alias.

    Raises UserError.
    """
    known = specs(settings)
    normalised = _public(unicodedata.normalize("NFC", name))  # an alias may be Hangul
    for full, spec in known.items():
        if normalised in (full, *spec.aliases):
            return full, spec
    raise UserError(
        _(
            "no setting {name!r}; available: {names}",
            name=safe_line(name),
            names=", ".join(known),
        )
    )


def value_of(settings: Any, name: str) -> Any:
    """Return the value of a setting."""
    return getattr(settings, _private(name))


def default_of(settings: Any, name: str) -> Any:
    """Return the default of a setting."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(settings)}
    return defaults[_private(name)]


def change(
    settings: SettingsT, name: str, text: str, *, display_name: str | None = None
) -> SettingsT:
    """Return a copy of `settings` in which the setting `name` has the typed value `text`.

    `display_name` is the name in an error message (`--top-k`). Raises UserError.
    """
    full, spec = find(settings, name)
    value = parse_value(spec, display_name or full, text)
    return dataclasses.replace(settings, **{_private(full): value})  # type: ignore[type-var]


def with_values(settings: SettingsT, values: Mapping[str, Any]) -> SettingsT:
    """Return `settings` with values of Python in place of some, each checked as if it were typed.

    None leaves a setting as it is. Raises UserError, also for a name that is no setting.
    """
    for name, value in values.items():
        full, spec = find(settings, name)
        if value is None:
            continue
        if spec.parse is strings:  # they are taken as they are
            chosen = (value,) if isinstance(value, str) else tuple(map(str, value))
        elif any(
            # A number that stands for auto is ours: who gives 0 steps did not mean auto.
            value is meaning and (word != "auto" or meaning is None)
            for word, meaning in spec.special_values.items()
        ):
            chosen = value
        else:
            text = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            chosen = parse_value(spec, full, text)
        changed = {_private(full): chosen}
        settings = dataclasses.replace(settings, **changed)  # type: ignore[type-var]
    return settings


def parse_value(spec: Spec, name: str, text: str, error: type[UserError] = UserError) -> Any:
    """Return the value of a typed text. Raises `error` with `name` and the expectation."""
    text = text.strip()
    try:
        return _parsed(spec, text)
    except ValueError as why:
        meant = in_english(text)  # only now: a setting may be a text
        if meant in words_of(spec):
            return _parsed(spec, meant)
        words = [str(why)] if spec.parse is not switch else []
        expected = (_(", or ") if words else _(" or ")).join([*words, *spec.special_values])
        raise error(
            _(
                "{name} needs {wanted}, not {value!r}",
                name=name,
                wanted=expected,
                value=safe_line(text),
            )
        ) from None


def _parsed(spec: Spec, text: str) -> Any:
    if text.lower() in spec.special_values:
        return spec.special_values[text.lower()]
    return spec.parse(text)


def parse_number(spec: Spec, value: Any) -> Any:
    """Return the value of a setting that a client or a model's file gives as a number.

    Raises ValueError with the expectation.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(_("a number"))
    try:
        return spec.parse(repr(value))
    except OverflowError:
        raise ValueError(_("a number")) from None


def format_value(spec: Spec, value: Any) -> str:
    """Return a value as a user types it."""
    for word, meaning in spec.special_values.items():
        if value == meaning and type(value) is type(meaning):
            return word
    if isinstance(value, tuple):
        words = [word.replace("\n", "\\n").replace("\t", "\\t") for word in value]
        quoted = [shlex.quote(word) if _NEEDS_QUOTES.search(word) else word for word in words]
        return safe_line(" ".join(quoted))
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_texts(settings: Any) -> dict[str, str]:
    """Return all settings by name as texts, each of which `change` reads as the very same value."""
    values = {name: (spec, value_of(settings, name)) for name, spec in specs(settings).items()}
    return {
        name: repr(value)
        if type(value) is float and value not in spec.special_values.values()
        else format_value(spec, value)
        for name, (spec, value) in values.items()
    }


def _public(name: str) -> str:
    return name.replace("_", "-")


def _private(name: str) -> str:
    return name.replace("-", "_")
