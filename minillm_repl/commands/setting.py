"""`:temp`, `:top-k` and the other settings, each a command of its own, made from the settings' descriptions."""

from rich.text import Text

from minillm_repl.repl.registry import Command
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import Spec, default_of, show, specs, value_of


def _command(name: str, spec: Spec) -> Command:
    def run(shell: Shell, argument: str) -> None:
        if name == "verbose" and not (argument or shell.session.settings.verbose):
            argument = "on"  # nobody types :verbose to be told that it is off
        if argument:
            shell.session.set(name, argument, f":{name}")
        value = show(spec, value_of(shell.session.settings, name))
        chosen = (
            f" (last: {shell.session.seed})" if name == "seed" and value == "random" and shell.session.turns else ""
        )
        shell.screen.out.print(Text(f"{name} {value}{chosen}"), soft_wrap=True)

    values = "|".join(filter(None, (spec.metavar, *spec.words)))
    default = show(spec, default_of(Settings, name))
    bare = "turns it on" if name == "verbose" else "shows the present one"
    usual = f"Without a value it {bare}. Default: {default}."
    details = f"{spec.details}\n{usual}".strip()
    summary = spec.help[0].upper() + spec.help[1:] + "."
    return Command(name, f":{name} [{values}]", summary, run, details, spec.aliases, "words", tuple(spec.words))


SETTING_COMMANDS = tuple(_command(name, spec) for name, spec in specs(Settings).items())
