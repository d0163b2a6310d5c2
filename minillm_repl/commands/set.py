"""`:set`."""

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.render.tables import settings_table
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import show, specs, value_of


@command("set", ":set [NAME VALUE]", completion="words", words=tuple(specs(Settings)))
def set_(shell: Shell, argument: str) -> None:
    """Show all settings, or change one.

    `:set top-k 40` is the same as `:top-k 40`.
    """
    if not argument:
        shell.screen.out.print(settings_table(shell.session.settings))
        return
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    if not value.strip():
        raise UserError(f":set {name} needs a value as well; `:set` alone shows all")
    shell.session.set(name, value)
    for known, spec in specs(Settings).items():
        if name == known or name in spec.aliases:
            shell.screen.out.print(Text(f"{known} {show(spec, value_of(shell.session.settings, known))}"))
