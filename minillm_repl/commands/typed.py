"""`:history` and `:copy`: what was typed, and what was answered, to use again."""

import base64
import os

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES
from minillm_repl.repl.arguments import Arguments, Choice, Number, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe, safe_line
from minillm_repl.settings import integer
from minillm_repl.tokenizer import decode

_SHOWN_LINES = 20
# Bytes that are copied: terminals drop longer sequences (xterm, tmux), and do not tell.
_MAX_COPIED = 50_000
_WITHOUT_CLIPBOARD = ("", "dumb", "linux")  # values of TERM


@command(
    "history",
    arguments=(Number("number", integer(1)), TextArgument(free=True)),
    aliases=("기록",),
    group="Talk",
    example=":history 날씨",
)
def history(shell: Shell, asked: Arguments) -> None:
    """Show the lines that were typed, or find one.

    Each line has its number. With TEXT, those that contain it are shown.

    :history 12 puts line 12 into the next prompt line, for you to change or send.

    Lines are kept at a terminal, in a file that only you can read. --no-history keeps none after
    the end. A line that the program answers in a model's place is not kept (`:help care`).
    """
    lines = shell.typed_lines()
    if asked.number and not asked.text:
        if asked.number > len(lines):
            raise UserError(
                _("no line {number}: there are {count}", number=asked.number, count=len(lines))
            )
        line = lines[asked.number - 1]
        shell.next_line = f'"""\n{line}\n"""' if "\n" in line else line
        return
    wanted = f"{asked.number or ''} {asked.text}".strip().casefold()
    found = [(n, line) for n, line in enumerate(lines, 1) if wanted in line.casefold()]
    if not found:
        shell.screen.note(_("no such line was typed") if lines else _("nothing was typed yet"))
    left_out = len(found) - _SHOWN_LINES
    if left_out > 0:
        shell.screen.note(_n("… {n} line before", "… {n} lines before", left_out))
    digits = len(str(len(lines)))
    for number, line in found[-_SHOWN_LINES:]:
        shown = Text.assemble((f"{number:>{digits}}  ", FIGURES), safe_line(line))
        shell.screen.out.print(shown, no_wrap=True, overflow="ellipsis")


@command(
    "copy",
    arguments=(Choice("all", name="what", 전체="all", 모두="all"),),
    aliases=("복사",),
    group="Talk",
    example=":copy",
)
def copy(shell: Shell, asked: Arguments) -> None:
    """Copy the last answer to the clipboard.

    `all` copies the whole text. It goes to the terminal (OSC 52), so that it works over SSH too. A
    terminal does not say whether it takes it: some ask first, some need a setting (tmux: `set -g
    set-clipboard on`), some have none. Control characters are shown as signs, so that a paste runs
    nothing.
    """
    conversation, out = shell.session.conversation, shell.screen.out
    if not conversation.turns:
        raise UserError(_("no answer to copy: type a prompt first"))
    tokenizer = shell.require_model().checkpoint.tokenizer
    text = conversation.answer(tokenizer)
    if asked.what == "all":
        messages = conversation.messages
        text = "\n\n".join(each.content for each in messages) or decode(tokenizer, conversation.ids)
    text = safe(text)
    data = text.encode("utf-8", "replace")
    if not out.file.isatty() or os.environ.get("TERM", "") in _WITHOUT_CLIPBOARD:
        raise UserError(
            _(":copy needs a terminal with a clipboard; `:export FILE.md` saves the text")
        )
    if len(data) > _MAX_COPIED:
        raise UserError(
            _(
                "{n:,} bytes are more than a terminal takes; `:export FILE.md` saves the text",
                n=len(data),
            )
        )
    out.file.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    out.file.flush()
    count = _n("{n} character", "{n} characters", len(text))
    shell.screen.note(
        _("{count} sent to the terminal; whether it took them, it does not say", count=count)
    )
