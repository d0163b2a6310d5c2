"""What follows a command, declared once: usage line, completion, typed values, error messages.

    @command("attn", arguments=(Layer(head="optional"), TextArgument()), json=True)
    def attn(shell: Shell, asked: Arguments) -> None:
        print(asked.layer, asked.head, asked.text, asked.output)

    Layer(head="optional")              `2` or `2.1`     asked.layer, asked.head; None if missing
    PlaceArgument()                     `@3`, `@Seoul`   asked.place (repl/places.py)
    Number("count", integer(1, 9), 3)   `5`              asked.count
    Choice("zero", "mean", name="how")  `mean`           asked.how; "" if missing
    Option("rate", number(0, 9), 0.1)   `rate=2`         asked.rate
    Flag("--overwrite")                 `--overwrite`    asked.overwrite
    TextArgument()                      the rest         asked.text; `quoted=True`: only in quotes
    TextPair("vs", "TEXT vs TEXT")      `a vs "b c"`     asked.texts, a pair
    Words("path", "PATH|NAME")          the rest         asked.path, as typed

An argument may be missing unless it is `required`. `Forms((Layer(),), ("scan", TextArgument()))`
declares alternatives: a string is a keyword, `asked.keyword` the one that was typed. `json=True`
adds `--json FILE` and `--csv FILE`, as `asked.output`. Options and flags count outside quotes. A
UsageError names the value; the shell adds the usage.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.repl.quoting import (
    TO_SCREEN,
    Output,
    check_not_argument,
    last_quoted,
    mask_quoted,
    split_outside_quotes,
    split_word,
    translate_usage,
    unquoted,
)
from minillm_repl.safetext import safe_line
from minillm_repl.settings import Parser, Spec, one_of, parse_value

Completion = Literal["nothing", "command", "file", "checkpoint"]
Values = dict[str, Any]

INDEX = r"\d{1,9}"  # of a layer, a head, a position: more digits are no index


@dataclass(frozen=True)
class Arguments:
    """What was typed after the name of a command: a value for each declared argument."""

    values: Mapping[str, Any]  # by the name of each argument
    output: Output = TO_SCREEN

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__["values"]:
            raise AttributeError(name)
        return self.values[name]


class Argument:
    """One part of what follows a command."""

    completions: tuple[str, ...] = ()  # words that the prompt line completes
    takes_rest = False  # arguments after this one are read from the end of the line

    def __init__(self, usage: str, defaults: Values, *, required: bool = False) -> None:
        # A usage that begins with [ says itself what may be missing.
        self.usage = usage if required or usage[0] == "[" else f"[{usage}]"
        self.defaults, self.required = defaults, required

    def take(self, text: str) -> tuple[Values, str]:
        """Read what begins `text`; return the values, and what follows. Raises UsageError."""
        raise NotImplementedError

    def take_last(self, text: str) -> tuple[Values, str]:
        """Read the argument at the end of `text`; return its values, and what precedes."""
        raise NotImplementedError

    def missing(self, text: str) -> tuple[Values, str]:
        """Return no values. Raises UsageError if the argument is required."""
        if not self.required:
            return {}, text
        if not text:
            raise UsageError(_("{name} is missing", name=translate_usage(self.usage)))
        word, usage = safe_line(split_word(text)[0][:40]), translate_usage(self.usage)
        raise UsageError(_("{word} is not {argument}", word=word, argument=usage))


class Choice(Argument):
    """One of a few words; `aliases` are other spellings of some, such as Korean ones."""

    def __init__(self, *words: str, name: str = "choice", **aliases: str) -> None:
        super().__init__("|".join(words), {name: ""})
        self.completions, self._name = words, name
        self._meanings = {word: word for word in words} | aliases

    def take(self, text: str) -> tuple[Values, str]:
        """Read one of the words."""
        first, rest = split_word(text)
        known = self._meanings.get(first)
        return ({self._name: known}, rest) if known else ({}, text)

    def take_last(self, text: str) -> tuple[Values, str]:
        """Read one of the words; alone, it is what it follows elsewhere, such as a file."""
        rest, _space, last = text.rpartition(" ")
        known = self._meanings.get(last) if rest else None
        return ({self._name: known}, rest.strip()) if known else ({}, text)


class Layer(Argument):
    """A layer, alone or with one of its parts: `2`, or `2.1` or `L2H1` for head (or neuron) 1."""

    def __init__(
        self,
        head: Literal["none", "optional", "required"] = "none",
        *,
        part: str = "head",
        required: bool = False,
    ) -> None:
        name = f".{part.upper()}"
        usage = {"none": "", "optional": f"[{name}]", "required": name}
        letter = part[0]
        second = {
            "none": "",
            "optional": rf"(?:(?:\.|{letter})({INDEX}))?",
            "required": rf"(?:\.|{letter})({INDEX})",
        }
        defaults = {"layer": None} | ({} if head == "none" else {part: None})
        super().__init__(f"LAYER{usage[head]}", defaults, required=required)
        self._pattern = re.compile(rf"l?({INDEX}){second[head]}(?=\s|$)", re.IGNORECASE)

    def take(self, text: str) -> tuple[Values, str]:
        """Read `2`, `2.1` or `L2H1`."""
        found = self._pattern.match(text)
        if found is None:
            return self.missing(text)
        indices = [None if index is None else int(index) for index in found.groups()]
        # The defaults have the names in this order: layer, then head or neuron.
        return dict(zip(self.defaults, indices, strict=True)), text[found.end() :]


_POSITION = re.compile(rf"@?(-?{INDEX})")


def position(text: str) -> int:
    """Parse a position as views show it and as people type it: `@3`, `3`, `-1`."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise ValueError(_("a position, such as 3 or -1"))
    return int(found[1])


class Number(Argument):
    """A number without a name, such as how many."""

    def __init__(
        self, name: str, parse: Parser, default: Any = None, *, required: bool = False
    ) -> None:
        super().__init__("N", {name: default}, required=required)
        self._name, self._parse = name, parse

    def take(self, text: str) -> tuple[Values, str]:
        """Read a word of digits."""
        first, rest = split_word(text)
        if not re.fullmatch(r"-?\d+", first):
            return self.missing(text)
        return {
            self._name: parse_value(Spec(parse=self._parse, help=""), "N", first, UsageError)
        }, rest


class Option(Argument):
    """A value with a name, such as `strength=4`."""

    def __init__(
        self,
        name: str,
        parse: Parser,
        default: Any = None,
        metavar: str = "",
        *,
        required: bool = False,
    ) -> None:
        shown = metavar or (f"{default:g}" if isinstance(default, float) else str(default))
        super().__init__(f"{name}={shown}", {name: default}, required=required)
        self.completions, self.name, self.parse = (f"{name}=",), name, parse
        self.is_number = not isinstance(default, str)  # then `strength 4` is a slip, not a text


class ChoiceOption(Option):
    """An option whose value is one of a few words; the first is the default."""

    def __init__(self, name: str, *words: str) -> None:
        super().__init__(name, one_of(*words), words[0], "|".join(words))
        self.completions = tuple(f"{name}={word}" for word in words)


class Flag(Argument):
    """A word such as `--overwrite`."""

    def __init__(self, word: str) -> None:
        self.word, self.name = word, word.strip("-")
        super().__init__(word, {self.name: False})
        self.completions = (word,)


class TextArgument(Argument):
    """A text: what remains, in quotes or not.

    With `quoted` it must stand in quotes, at the end. With `free` it may begin like another
    argument. With `verbatim` its spaces and quotes belong to it, and options count only before it.
    """

    def __init__(
        self,
        metavar: str = "TEXT",
        *,
        required: bool = False,
        quoted: bool = False,
        free: bool = False,
        verbatim: bool = False,
    ) -> None:
        usage = f'"{metavar}"' if quoted else metavar
        super().__init__(usage, {"text": ""}, required=required)
        self.takes_rest, self.verbatim, self._is_free = not quoted, verbatim, free

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains."""
        if not text:
            return self.missing("")
        if self.verbatim:
            return {"text": text}, ""
        if not self._is_free:
            check_not_argument(text)
        return {"text": unquoted(text)}, ""

    def take_last(self, text: str) -> tuple[Values, str]:
        """Read a quoted text."""
        quoted = last_quoted(text)
        if not quoted:
            return {}, text
        return {"text": unquoted(quoted)}, text.removesuffix(quoted).strip()


class TextPair(Argument):
    """Two texts with a word between them, each in quotes or not: `a vs "b c"`.

    `required` says how many must be there. `also` is another spelling of the word.
    """

    takes_rest = True

    def __init__(
        self, separator: str, usage: str, *, required: Literal[0, 1, 2] = 0, also: str = ""
    ) -> None:
        super().__init__(usage, {"texts": ("", "")}, required=True)
        self._separator, self._also, self._count = separator, also, required

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains."""
        mark = self._also if self._also and self._also in mask_quoted(text) else self._separator
        mark = f" {mark} " if mark.isalpha() else mark  # `vs` is a word, `->` needs no spaces
        first, is_found, second = split_outside_quotes(f" {text} ", mark)
        first, second = first.strip(), second.strip()
        too_few = bool(first) + bool(second) < self._count or (bool(self._count) and not first)
        if too_few or (is_found and not second):
            raise UsageError(_("a text is missing beside {mark}", mark=self._separator))
        return {"texts": (unquoted(first), unquoted(second))}, ""


class Words(Argument):
    """What remains, as it is typed: a file, a name, a value."""

    takes_rest = True

    def __init__(
        self,
        name: str,
        usage: str,
        *words: str,
        required: bool = False,
        completion: Completion = "nothing",
    ) -> None:
        super().__init__(usage, {name: ""}, required=required)
        self.completions, self.completion, self._name = words, completion, name

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains. A flag behind a file is no part of its name."""
        flag = re.search(r"\s(--[a-z][\w-]*)$", text) if self.completion == "file" else None
        if flag:
            raise UsageError(_("{flag} is no option here", flag=flag[1]))
        return ({self._name: text}, "") if text else self.missing(text)
