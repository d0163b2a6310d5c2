"""`:set`."""

import re

from rich.text import Text

from minillm_repl.commands.setting import change
from minillm_repl.render.tables import settings_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import find, format_value, specs, value_of


@command(
    "set",
    arguments=(Words("change", "NAME [VALUE]", *specs(Settings)),),
    aliases=("설정",),
)
def set_(shell: Shell, asked: Arguments) -> None:
    """Show all settings; show or change one.

    `:set top-k 40` is the same as `:top-k 40`.
    """
    if not asked.change:
        shell.screen.out.print(settings_table(shell.session.settings))
        return
    words = re.fullmatch(r"([^\s=]*)\s*=?\s*(.*)", asked.change, re.DOTALL)
    name, value = words.groups()  # type: ignore[union-attr]
    if value:
        change(shell, name, value)
    known, spec = find(Settings, name)
    shell.screen.out.print(
        Text(f"{known} {format_value(spec, value_of(shell.session.settings, known))}"),
        soft_wrap=True,
    )
