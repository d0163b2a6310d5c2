"""`:help`, `:lang`, `:scroll` and `:quit`: the program itself."""

from rich.cells import cell_len
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, N_, _, current_language, set_language
from minillm_repl.render.console import FIGURES
from minillm_repl.render.drawing import UNLIMITED_WIDTH
from minillm_repl.render.tables import commands_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import GROUPS, Command, command
from minillm_repl.repl.shell import ExitRequested, Shell
from minillm_repl.safetext import safe_line

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
    example=":help lens",
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


@command(
    "lang",
    arguments=(Words("language", "ko|en", *LANGUAGES),),
    aliases=("언어",),
    example=":lang ko",
)
def lang(shell: Shell, asked: Arguments) -> None:
    """Set the language: Korean or English.

    Only the program's own messages change. To set the language for every session, use `--lang`,
    MINILLM_LANG or the configuration file.
    """
    chosen = next((each for each in LANGUAGES if each == asked.language.lower()), None)
    if asked.language and chosen is None:
        raise UserError(_(":lang takes ko or en, not {value!r}", value=safe_line(asked.language)))
    if chosen is None:
        shell.screen.out.print(Text(f"lang {current_language()}"))
        return
    set_language(chosen)
    shell.screen.note(_("English from now on"))


@command("scroll", aliases=("스크롤",))
def scroll(shell: Shell, _asked: Arguments) -> None:
    """Scroll through the last view in full size.

    Arrow keys, Page Up, Page Down, Home and End (the ends of a row) move; q closes. Without a
    terminal, the view is printed at full width.
    """
    if shell.last_view is None:
        raise UserError(_("no view to scroll yet: try `:attn 0.0`"))
    view = shell.last_view(UNLIMITED_WIDTH)
    if not shell.screen.animated:
        shell.screen.out.print(view, soft_wrap=True, width=UNLIMITED_WIDTH)
        return
    from minillm_repl.repl.pager import Pager

    Pager(view, UNLIMITED_WIDTH, shell.screen.out, shell.last_pinned).run()


@command("quit", aliases=("q", "exit", "bye", "끝"))
def quit_(_shell: Shell, _asked: Arguments) -> None:
    """Quit (Ctrl-D)."""
    raise ExitRequested
