"""Commands and views that other packages bring: the entry point group `minillm_repl.commands`.

docs/extending.md has an example. An entry point names a module, as those of `commands` and `views`,
or one `Command`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from minillm_repl.language import _
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
    for entry in sorted(entry_points(group=GROUP)):
        try:
            loaded[entry.name] = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin must not end the program
            message = _("the plugin {name} ({value}) does not work: {error:.200}",
                        name=safe_line(entry.name), value=safe_line(entry.value),
                        error=safe_line(f"{type(error).__name__}: {error}"))  # fmt: skip
            broken.append(message)
    return Plugins(loaded, tuple(broken))
