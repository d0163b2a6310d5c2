"""`:help`."""

from rich.text import Text

from minillm_repl.render.console import FIGURES
from minillm_repl.render.tables import commands_table
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell

_KEYS = """Enter sends · Alt-Enter or Ctrl-J breaks the line · \"\"\" opens and closes a block of lines
↑ ↓ history · Ctrl-R searches it · Tab completes · Ctrl-X Ctrl-E opens your editor
Ctrl-C clears the line, or stops the model and keeps what it wrote · Ctrl-D leaves
A line without a colon is a prompt; :: at its start sends one colon."""


@command("help", ":help [COMMAND]", aliases=("h", "?"), completion="command")
def help_(shell: Shell, argument: str) -> None:
    """List the commands, or explain one."""
    out = shell.screen.out
    if argument:
        found = shell.registry.get(argument.partition(" ")[0].lstrip(":/"))
        out.print(commands_table([(found.usage, found.summary)]))
        for text in (
            found.details,
            f"also: {', '.join(':' + name for name in found.aliases)}" if found.aliases else "",
        ):
            if text:
                out.print(Text(text))
        return
    out.print(commands_table((each.usage, each.summary) for each in shell.registry))
    out.print(Text(_KEYS, FIGURES))
