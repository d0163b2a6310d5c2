"""The program itself, and what it has shown: `:help`, `:lang`, `:alias`, `:scroll`, `:export`."""

import re
from functools import partial
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import LANGUAGES, N_, _, current_language, in_english, set_language
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH
from minillm_repl.render.export import FORMATS, check_overwritable, whole_width, write_view
from minillm_repl.render.tables import commands_table
from minillm_repl.repl.arguments import Arguments, Choice, Flag, Words
from minillm_repl.repl.quoting import split_word
from minillm_repl.repl.registry import GROUPS, Command, command, normalise_name
from minillm_repl.repl.shell import ExitRequested, Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.views.conversation import SUFFIXES as CONVERSATION_SUFFIXES
from minillm_repl.views.conversation import compute

# cells: a longer usage line stands above its summary, which would else have a few words a line
_MAX_USAGE_BESIDE = 40

_KEYS = N_(
    'Enter sends · \\ Enter, Alt-Enter or Ctrl-J starts a new line · """ begins and ends a block\n'
    "↑ ↓ history, of lines that begin as yours · → takes the grey rest · Ctrl-R searches\n"
    "Tab completes, by any letters of a name · Ctrl-X Ctrl-E opens an editor\n"
    "Ctrl-C clears the line · Esc or Ctrl-C stops the model and keeps its text\n"
    "Ctrl-Z suspends · Ctrl-D, exit or quit leaves\n"
    "A line without a leading colon is a prompt; :: at the start sends one colon.\n"
    "`:help NAME` explains a command and its numbers.\n"
    "All numbers are float32, computed from the stored weights. `transformers` in\n"
    "bfloat16 rounds at each step: it shows 76.9% for 79.1%, or 13.19 for 13.36."
)

# Forms of a lesson on paper: in Korean, and as the usage names them.
_ON_PAPER = {"학습지": "worksheet", "답안지": "answers", "정답지": "key"}

_JSON = N_(
    "`--json FILE` writes the numbers to a file, `--csv FILE` the rows of a table; `--json -` and "
    "`--csv -` print them (docs/format.md)."
)


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
        # `:help :lens` and `:help lens scan` ask for lens.
        found = shell.registry.get(asked.command.partition(" ")[0].lstrip(":/"))
        print_help(out, found)
        return
    listed = {
        group: [(_names(each), _(each.summary)) for each in shell.registry.group(group)]
        for group in GROUPS
    }
    # One width for all groups, so that the summaries stand in one column.
    width = max(cell_len(names) for rows in listed.values() for names, _summary in rows)
    for group, rows in listed.items():
        out.print(Text(_(group), FIGURES))
        out.print(commands_table(rows, width))
    out.print(Text(_(_KEYS), FIGURES))


def print_help(out: Console, found: Command) -> None:
    """Print what a command does, how it is typed, and an example."""
    if cell_len(found.usage) > _MAX_USAGE_BESIDE:
        out.print(Text(found.usage, TITLE), Text(_(found.summary)), sep="\n")
    else:
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
    wish = in_english(asked.language.lower())
    chosen = next((each for each in LANGUAGES if each == wish), None)
    if asked.language and chosen is None:
        raise UserError(_(":lang takes ko or en, not {value!r}", value=safe_line(asked.language)))
    if chosen is None:
        shell.screen.out.print(Text(f"lang {current_language()}"))
        return
    set_language(chosen)  # before the note, which is the first text in it
    shell.screen.note(_("English from now on"))


@command(
    "alias",
    arguments=(Words("line", "[NAME] [:COMMAND|off]"),),
    aliases=("별명",),
    example=":alias x :why by=layer",
)
def alias(shell: Shell, asked: Arguments) -> None:
    """Give a command a name of your own.

    `:alias x :why by=layer` makes `:x` stand for `:why by=layer`; what follows `:x` follows it.
    `:alias x off` removes it. Without a name, the command lists all aliases.

    An alias lasts for the session. The start-up file keeps it: each of its lines is run when the
    program starts (docs/command-line.md says where it lies).
    """
    names, (name, line) = shell.registry.user_aliases, split_word(asked.line)
    name = normalise_name(name.removeprefix(":").lower())
    if line:
        _set_alias(shell, name, line)
    elif name and name not in names:
        raise UserError(_("no alias :{name}", name=safe_line(name)))
    shown = {name: names[name]} if name in names else {} if name else names
    rows = [(f":{each}", safe_line(f":{whole}")) for each, whole in sorted(shown.items())]
    if rows:
        shell.screen.out.print(commands_table(rows))
    elif not name:
        shell.screen.note(_("no aliases yet; an example: `:alias x :why by=layer`"))


def _set_alias(shell: Shell, name: str, line: str) -> None:
    """Give a line a name, or take it away. Raises UserError."""
    registry = shell.registry
    if line == "off":
        if registry.user_aliases.pop(name, None) is None:
            raise UserError(_("no alias :{name}", name=safe_line(name)))
        return
    if not re.fullmatch(r"[\w-]{1,40}", name):
        raise UsageError(_("a name has letters, digits, - and _ only"))
    if registry.is_name(name):
        raise UserError(_(":{name} is a command", name=name))
    if not line.startswith(":") or line.startswith("::"):
        raise UsageError(_("an alias stands for a command, such as `:why by=layer`"))
    whole = line[1:].lstrip()
    registry.get(split_word(whole)[0].lower())  # or an error that names the nearest
    registry.user_aliases[name] = whole


@command("scroll", aliases=("스크롤",))
def scroll(shell: Shell, _asked: Arguments) -> None:
    """Scroll through the last view in full size.

    Arrow keys, Page Up, Page Down, Home and End (the ends of a row) move, and so do the keys of
    `less`: space, b, j, k, g and G. `/` searches, n and N find the next and the one before; q
    closes. Without a terminal, the view is printed at full width.
    """
    if shell.last_view is None:
        raise UserError(_("no view to scroll yet: try `:attn 0.0`"))
    view = shell.last_view(UNLIMITED_WIDTH)
    if not shell.screen.animated:
        # A file or a pipe has no width: lines stay whole.
        shell.screen.out.print(view, soft_wrap=True, width=UNLIMITED_WIDTH)
        return
    from minillm_repl.repl.pager import Pager

    Pager(view, UNLIMITED_WIDTH, shell.screen.out, shell.last_pinned).run()


@command("quit", aliases=("q", "exit", "bye", "끝"))
def quit_(_shell: Shell, _asked: Arguments) -> None:
    """Quit (Ctrl-D)."""
    raise ExitRequested


@command(
    "export",
    arguments=(
        Words("file", "FILE.svg|.html|.txt|.md|.json", required=True, completion="file"),
        Choice("session", "lesson", "conversation", *_ON_PAPER.values(), name="whole", **_ON_PAPER),
        Flag("--overwrite"),
    ),
    aliases=("내보내기",),
    example=":export lens.svg",
)
def export(shell: Shell, asked: Arguments) -> None:
    """Save the last view, the conversation, or the whole session.

    The end of the name sets the format: .svg and .html keep colours and open in any browser; .txt
    is plain text. The picture holds the whole view, however small the terminal is.

    `session` saves all that this session has shown, even without a view. `lesson` saves the lesson
    that is open, or was last open, with its pictures as they were.

    .md and .json save the conversation: the transcript, or every number of each token as `--json`
    has it. `:export FILE.html conversation` saves one page to look into: the text is coloured by
    probability, and shows a token's candidates where one points. It works offline.

    `worksheet` saves the open lesson as a page to print, with room for answers and without them.
    `answers` is the same with your own answers, `key` with the right ones. These end in .html.

    The command overwrites a file that no view wrote only with --overwrite. The same is true of
    --json FILE for all views.
    """
    path, whole = user_path(asked.file), asked.whole
    if whole in _ON_PAPER.values():
        from minillm_repl.lessons.worksheet import export_lesson

        export_lesson(shell, path, whole, overwrite=asked.overwrite)
        return
    suffix = path.suffix.lower()
    is_conversation = whole == "conversation" or suffix in (".md", ".json")
    if suffix not in (CONVERSATION_SUFFIXES if is_conversation else FORMATS):
        endings = ", ".join(
            CONVERSATION_SUFFIXES if is_conversation else [*FORMATS, ".md", ".json"]
        )
        raise UsageError(
            _(
                ":export needs a file name that ends in {endings}; after it, only "
                "`session`, `lesson` or `conversation` may follow",
                endings=endings,
            )
        )
    if is_conversation:
        _export_conversation(shell, path, overwrite=asked.overwrite)
    else:
        _export_picture(shell, path, whole, overwrite=asked.overwrite)


def _export_picture(shell: Shell, path: Path, whole: str, *, overwrite: bool) -> None:
    screen, view = shell.screen, shell.last_view
    # Outputs are counted from the start of the session.
    since = shell.lesson_start_count if whole == "lesson" else 0
    if whole or view is None:
        # The widest that the terminal was: what fitted then is not wrapped now.
        width, drawing = screen.out.max_width(since), partial(screen.out.replay, since=since)
    else:
        picture = view(UNLIMITED_WIDTH)  # all of it, whatever had room on the terminal
        width, drawing = whole_width(picture), partial(_print, picture)

    # The title bar of the picture.
    model = shell.session.workspace.model
    title = safe_line(f"minillm-repl · {model.name}" if model else "minillm-repl")
    written = FORMATS[path.suffix.lower()](drawing, width, title)
    # A lone surrogate has no UTF-8: it becomes `?`.
    write_view(path, written.encode("utf-8", "replace"), overwrite=overwrite)
    named = safe_line(str(path))
    screen.note(
        _("lesson saved to {path}", path=named)
        if whole == "lesson"
        else _("session saved to {path}", path=named)
        if whole or view is None
        else _("last view saved to {path}", path=named)
    )
    gone = screen.out.forgotten_count(since) if whole or view is None else 0
    if gone:
        screen.warn(
            _("the oldest {n:,} outputs are no longer kept, so the file lacks them", n=gone)
        )


def _export_conversation(shell: Shell, path: Path, *, overwrite: bool) -> None:
    check_overwritable(path, overwrite=overwrite)  # now, not after the work
    suffix = path.suffix.lower()
    view = compute(shell, with_numbers=suffix != ".md")
    write_view(path, view.written(suffix).encode("utf-8", "replace"), overwrite=overwrite)
    shell.screen.note(_("conversation saved to {path}", path=safe_line(str(path))))


def _print(picture: RenderableType, console: Console) -> None:
    console.print(picture)
