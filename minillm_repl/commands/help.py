"""`:help`."""

from rich.text import Text

from minillm_repl.render.console import FIGURES
from minillm_repl.render.tables import commands_table
from minillm_repl.repl.registry import GROUPS, command
from minillm_repl.repl.shell import Shell

_KEYS = """Enter sends · Alt-Enter or Ctrl-J breaks the line · \"\"\" begins and ends several
↑ ↓ history · Ctrl-R searches it · Tab completes · Ctrl-X Ctrl-E opens an editor
Ctrl-C clears the line, or stops the model and keeps its text · Ctrl-D leaves
What has no colon is a prompt; :: at its start sends one colon.
`:help NAME` says what a command takes, and what its numbers mean."""


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
    listed = {group: [(f":{each.name}", each.summary) for each in shell.registry.group(group)] for group in GROUPS}
    names = max(len(name) for rows in listed.values() for name, _ in rows)
    for group, rows in listed.items():
        out.print(Text(group, FIGURES))
        out.print(commands_table(rows, names))
    out.print(Text(_KEYS, FIGURES))
