"""`:set`, and `:temp`, `:top-k` and the other settings, each a command of its own, made from the
settings' descriptions.
"""

import re

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import Sampling
from minillm_repl.language import _
from minillm_repl.render.tables import settings_table
from minillm_repl.repl.arguments import Arguments, TextArgument, Words
from minillm_repl.repl.conversation import is_chatting
from minillm_repl.repl.forms import Form, Forms
from minillm_repl.repl.registry import Command, Group, command
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import Spec, default_of, find, format_value, specs, value_of
from minillm_repl.views.sampler import sweep


def _command(name: str, spec: Spec) -> Command:
    # Made in a function, so that each `run` keeps its own name and spec.
    def run(shell: Shell, asked: Arguments) -> None:
        if asked.keyword == "sweep":
            sweep(shell, asked)
            return
        argument = asked.value
        if name == "verbose" and not (argument or shell.session.settings.verbose):
            argument = "on"  # nobody types :verbose to be told that it is off
        if argument:
            change(shell, name, argument, f":{name}")
        value = format_value(spec, value_of(shell.session.settings, name))
        # The last random seed makes the last completion repeatable.
        chosen = (
            f" (last: {shell.session.conversation.seed})"
            if name == "seed" and value == "random" and shell.session.conversation.turns
            else ""
        )
        shell.screen.out.print(Text(f"{name} {value}{chosen}"), soft_wrap=True)

    words = tuple(spec.special_values)
    value: Form = (Words("value", "|".join(filter(None, (spec.metavar, *words))), *words),)
    default = format_value(spec, default_of(Settings, name))
    bare = "turns it on" if name == "verbose" else "shows the current one"
    usual = f"Without a value, the command {bare}. Default: {default}."
    sweeps = (
        "\n:temp sweep shows the most likely next tokens at several temperatures."
        if name == "temp"
        else ""
    )
    details = f"{spec.details}\n{usual}{sweeps}".strip()
    summary = spec.help[0].upper() + spec.help[1:] + "."
    return Command(
        name=name,
        summary=summary,
        run=run,
        forms=Forms(value, ("sweep", TextArgument(free=True))) if name == "temp" else Forms(value),
        details=details,
        aliases=spec.aliases,
        json=name == "temp",
        group=_group(name),
        example=f":{name} {spec.example or default}",
    )


def change(shell: Shell, name: str, text: str, said: str | None = None) -> None:
    """Change a setting, and say what becomes of the text so far.

    Raises UserError, leaving everything as it was.
    """
    session, before, model = shell.session, shell.session.settings, shell.session.workspace.model
    chatted = (
        before.chat is not False
        and model is not None
        and model.checkpoint.chat_template is not None
    )
    session.set(name, text, said)
    # Only `chat` decides whether the text so far still is what the model answers.
    if model is None or session.settings.chat is before.chat:
        return
    try:
        chats = is_chatting(model, session.settings.chat)
    except UserError:
        session.settings = before  # `:chat on` for a model that cannot chat
        raise
    if chats and not chatted and session.conversation.ids and not session.conversation.messages:
        shell.screen.note(
            _(
                "the next prompt starts a conversation without the text so far; "
                "`:continue` still continues that text"
            )
        )
    if chatted and not chats and session.conversation.messages:
        shell.screen.note(
            _("the next prompt starts a new text. To return to the conversation, use `:chat "
                "on` before it or `:undo` after it")
        )  # fmt: skip


def _group(name: str) -> Group:
    if name == "verbose":
        return "Predictions"
    return "Sampling" if name in specs(Sampling) or name == "seed" else "Talk"


SETTING_COMMANDS = tuple(_command(name, spec) for name, spec in specs(Settings).items())


@command(
    "set",
    arguments=(Words("change", "NAME [VALUE]", *specs(Settings)),),
    aliases=("설정",),
    example=":set top-k 40",
)
def set_(shell: Shell, asked: Arguments) -> None:
    """Show all settings; show or change one.

    `:set top-k 40` is the same as `:top-k 40`.
    """
    if not asked.change:
        shell.screen.out.print(settings_table(shell.session.settings))
        return
    # `top-k 40`, `top-k=40` and `top-k = 40`.
    # The pattern matches every text: each part may be empty.
    words = re.fullmatch(r"([^\s=]*)\s*=?\s*(.*)", asked.change, re.DOTALL)
    name, value = words.groups()  # type: ignore[union-attr]
    if value:
        change(shell, name, value)
    known, spec = find(Settings, name)
    shell.screen.out.print(
        Text(f"{known} {format_value(spec, value_of(shell.session.settings, known))}"),
        soft_wrap=True,
    )
