"""Commands: what one is, how it is declared, how they are found, also those of other packages.

Plugins bring commands and views through the entry point group `minillm_repl.commands`.
docs/extending.md has an example. An entry point names a module, as those of `commands` and `views`,
or one `Command`.
"""

import difflib
import importlib
import inspect
import pkgutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cache, cached_property
from itertools import chain
from types import ModuleType
from typing import Any, Literal, get_args

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.forms import Form, Forms
from minillm_repl.repl.layouts import to_latin_keys
from minillm_repl.safetext import safe_line

GROUP = "minillm_repl.commands"


@dataclass(frozen=True)
class Plugins:
    """What the entry points name, by the name of each, and a line for each that does not work."""

    loaded: dict[str, Any]
    broken: tuple[str, ...]


@cache
def load_plugins() -> Plugins:
    """Import what the entry points name, once.

    It takes some 50 ms to look for them: the first prompt does not wait for it.
    """
    from importlib.metadata import entry_points

    loaded: dict[str, Any] = {}
    broken: list[str] = []
    # Sorted: of two plugins with one command, the same one wins on every machine.
    for entry in sorted(entry_points(group=GROUP)):
        try:
            loaded[entry.name] = entry.load()
        # Any error: the code is somebody else's, and must not end the program.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            message = _("the plugin {name} ({value}) does not work: {error:.200}",
                        name=safe_line(entry.name), value=safe_line(entry.value),
                        error=safe_line(f"{type(error).__name__}: {error}"))  # fmt: skip
            broken.append(message)
    return Plugins(loaded, tuple(broken))


Run = Callable[[Any, Any], None]
"""Gets the `Shell`, not named here because it holds a registry, and the `Arguments`."""

Group = Literal[
    "Talk",
    "Sampling",
    "Predictions",
    "Look inside",
    "Interventions",
    "Train",
    "Learn",
    "Models and files",
]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Something a user can type after a colon."""

    name: str
    summary: str  # one line
    run: Run
    forms: Forms
    _: KW_ONLY
    json: bool = False  # whether it takes `--json FILE` and `--csv FILE`
    details: str = ""  # what `:help name` says more
    aliases: tuple[str, ...] = ()
    group: Group = "Models and files"  # where `:help` lists it
    example: str = ""  # a line that a test runs; it ends `:help name`
    # Whether a session that opens again may run it: it then intervenes, and writes no file.
    restores: Callable[[Any], bool] = lambda _asked: False

    @property
    def usage(self) -> str:
        """How it is typed: `:load PATH|NAME`."""
        return f":{self.name} {self.forms.usage}".rstrip()

    @property
    def words(self) -> tuple[str, ...]:
        """The words and names of options that may follow it."""
        return (*self.forms.completions, *(("--json", "--csv", "--overwrite") if self.json else ()))

    @property
    def korean_names(self) -> tuple[str, ...]:
        """Those of its names that are Korean."""
        return tuple(name for name in self.aliases if not name.isascii())

    def parse(self, text: str) -> Arguments:
        """Return what `run` takes. Raises UsageError for what is no argument of it."""
        return self.forms.parse(text, json=self.json)


def command(
    name: str,
    *,
    arguments: Form | Forms = (),
    json: bool = False,
    aliases: tuple[str, ...] = (),
    group: Group = "Models and files",
    example: str = "",
    restores: Callable[[Any], bool] | None = None,
) -> Callable[[Run], Command]:
    """Turn a function into a Command; its docstring is the help: a summary line, then details.

    Without `restores`, a session that opens again may run it if its group is that of interventions.
    """
    forms = arguments if isinstance(arguments, Forms) else Forms(arguments)

    def declare(run: Run) -> Command:
        # `python -OO` leaves no docstrings: commands then work, without help.
        summary, _newline, details = (run.__doc__ or "").partition("\n")
        return Command(
            name=name,
            summary=summary.strip(),
            run=run,
            forms=forms,
            json=json,
            details=paragraphs(details),
            aliases=aliases,
            group=group,
            # A command without arguments is its own example.
            example=example or ("" if forms.usage else f":{name}"),
            restores=restores or (lambda _asked: group == "Interventions"),
        )

    return declare


class Registry:
    """The commands of a program, by name and alias, and those of plugins.

    The program's commands are imported when the first name is looked up: a prompt needs none.
    Plugins are looked for when a name is not one of the program's, or when all names are listed.
    `warnings` then has a line for each that does not work.
    """

    def __init__(
        self,
        find_commands: Callable[[], Iterable[Command]],
        find_plugins: Callable[[], Plugins] | None = None,
    ) -> None:
        self._find_commands = find_commands
        self._find_plugins = find_plugins
        self.warnings: list[str] = []
        self.user_aliases: dict[str, str] = {}  # what `:alias` stands for, without its colon

    @cached_property
    def _own(self) -> dict[str, Command]:
        """The commands of the program."""
        return {name: each for each in self._find_commands() for name in (each.name, *each.aliases)}

    @cached_property
    def _by_name(self) -> dict[str, Command]:
        """All commands. A name of the program's own is never that of a plugin."""
        plugins = self._find_plugins() if self._find_plugins else Plugins({}, ())
        self.warnings += plugins.broken
        by_name = dict(self._own)
        for each in chain.from_iterable(map(_commands_in, plugins.loaded.values())):
            if each.name in by_name:
                self.warnings.append(
                    _("a plugin has a command :{name}, which exists", name=safe_line(each.name))
                )
                continue
            for name in (each.name, *each.aliases):
                by_name.setdefault(name, each)
        return by_name

    @property
    def commands(self) -> list[Command]:
        """All commands, by name."""
        return [each for name, each in sorted(self._by_name.items()) if name == each.name]

    def __iter__(self) -> Iterator[Command]:
        return iter(self.commands)

    def group(self, name: Group) -> list[Command]:
        """Return the commands of a group, by name."""
        return [each for each in self.commands if each.group == name]

    def expand(self, line: str) -> str:
        """Return what follows the colon of a line, with an alias of the user's written out."""
        name, space, rest = line.lstrip().partition(" ")
        whole = self.user_aliases.get(normalise_name(name.lower()))
        return line if whole is None else f"{whole}{space}{rest}"

    def is_name(self, name: str) -> bool:
        """Tell whether a command has exactly this name."""
        return name in self._own or name in self._by_name

    def has(self, name: str) -> bool:
        """Tell whether there is a command of this name, or an alias of the user's."""
        name = normalise_name(name)
        if name in self.user_aliases:
            return True
        # The program's own first: plugins take 50 ms to find.
        return name in self._own or name in self._by_name or bool(self._other_layout(name))

    def _other_layout(self, name: str) -> str:
        """Return the command whose name was typed in the wrong keyboard layout, or nothing."""
        keys = to_latin_keys(name)
        return next((own for own in self._own if to_latin_keys(own) == keys), "")

    def get(self, name: str) -> Command:
        """Return the command called `name`. Raises UserError with the nearest match."""
        name = normalise_name(name)
        if name in self._own:
            return self._own[name]
        if name in self._by_name:
            return self._by_name[name]
        if typed := self._other_layout(name):
            return self._own[typed]
        # Similarity from 0 to 1; at 0.5, a letter or two may be missing, wrong or swapped.
        near = difflib.get_close_matches(name, self._by_name, 1, 0.5)
        if near and len(name) > 1:  # one letter is near to too many
            raise UserError(
                _(
                    "unknown command :{name}; did you mean :{near}?",
                    name=safe_line(name),
                    near=near[0],
                )
            )
        raise UserError(
            _(
                "unknown command :{name}; :help lists all commands, and `::` at the start "
                "sends a literal colon",
                name=safe_line(name),
            )
        )


def normalise_name(name: str) -> str:
    """Return a typed name with whole syllables: some keyboards and files give Hangul in letters."""
    return unicodedata.normalize("NFC", name)


def paragraphs(text: str) -> str:
    """Return a docstring with one line per paragraph, so that a screen wraps it to its own width.

    An empty line separates two paragraphs. A line that begins with a command after the end of a
    sentence begins one too, and a line indented by four spaces stays as it is.
    """
    lines: list[str] = []
    for line in inspect.cleandoc("\n" + text).splitlines():
        begins = line.startswith("    ") or (
            line.startswith((":", "`:")) and lines and lines[-1].endswith((".", ":"))
        )
        if not lines or not line or not lines[-1] or begins or lines[-1].startswith("    "):
            lines.append(line)
        else:
            lines[-1] += " " + line
    return "\n".join(lines)


def discover(*packages: ModuleType, find_plugins: Callable[[], Plugins] | None = None) -> Registry:
    """Return the commands in every module of some packages."""

    def find_commands() -> Iterator[Command]:
        for package in packages:
            for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                yield from _commands_in(importlib.import_module(module.name))

    return Registry(find_commands, find_plugins)


def _commands_in(holder: Any) -> list[Command]:
    """Return the commands of a module, alone or in tuples; a command is its own."""
    values = vars(holder).values() if isinstance(holder, ModuleType) else (holder,)
    return [
        entry
        for value in values
        for entry in (value if isinstance(value, tuple) else (value,))
        if isinstance(entry, Command)
    ]
