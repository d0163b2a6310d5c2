"""`:help`."""

from rich.cells import cell_len
from rich.text import Text

from minillm_repl.language import N_, _, current_language
from minillm_repl.render.console import FIGURES
from minillm_repl.render.tables import commands_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import GROUPS, Command, command
from minillm_repl.repl.shell import Shell

_KEYS = N_(
    'Enter sends · Alt-Enter or Ctrl-J starts a new line · """ begins and ends a block\n'
    "↑ ↓ history · Ctrl-R searches it · Tab completes · Ctrl-X Ctrl-E opens an editor\n"
    "Ctrl-C clears the line, or stops the model and keeps its text · Ctrl-D quits\n"
    "A line without a leading colon is a prompt; :: at the start sends one colon.\n"
    "`:help NAME` explains a command and its numbers.\n"
    "All numbers are float32, computed from the stored weights. `transformers` in\n"
    "bfloat16 rounds at each step: it shows 76.9% for 79.1%, or 13.19 for 13.36."
)

_JSON = N_("`--json FILE` writes the numbers to a file, `--json -` prints them (docs/format.md).")


@command(
    "help",
    arguments=(Words("command", "COMMAND", completion="command"),),
    aliases=("h", "?", "도움말"),
)
def help_(shell: Shell, asked: Arguments) -> None:
    """List the commands, or explain one."""
    out = shell.screen.out
    if asked.command:
        found = shell.registry.get(asked.command.partition(" ")[0].lstrip(":/"))
        out.print(commands_table([(found.usage, _(found.summary))]))
        if found.details:
            out.print(Text(_(found.details)))
        others = [
            name
            for name in found.aliases
            if name not in found.korean_names or current_language() == "ko"
        ]
        if others:
            out.print(Text(_("also: {names}", names=", ".join(f":{name}" for name in others))))
        if found.json:
            out.print(Text(_(_JSON)))
        if found.example:
            out.print(Text(_("example: `{line}`", line=found.example)))
        return
    listed = {
        group: [(_names(each), _(each.summary)) for each in shell.registry.group(group)]
        for group in GROUPS
    }
    width = max(cell_len(names) for rows in listed.values() for names, _summary in rows)
    for group, rows in listed.items():
        out.print(Text(_(group), FIGURES))
        out.print(commands_table(rows, width))
    out.print(Text(_(_KEYS), FIGURES))


def _names(command: Command) -> str:
    """Return how a command is called: `:temp`, and to who speaks Korean also `:온도`."""
    return ", ".join(
        f":{name}"
        for name in (command.name, *(command.korean_names if current_language() == "ko" else ()))
    )
