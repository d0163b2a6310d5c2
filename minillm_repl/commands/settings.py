"""`:set`, and `:temp`, `:top-k` and the other settings, each a command of its own, made from the
settings' descriptions.
"""

import re
from dataclasses import replace

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import Sampling
from minillm_repl.language import _, current_language
from minillm_repl.render.tables import settings_table
from minillm_repl.repl.arguments import Arguments, TextArgument, Words
from minillm_repl.repl.conversation import is_chatting
from minillm_repl.repl.forms import Form, Forms
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.registry import Command, Group, command
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import DEFAULT, SOURCES, Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.settings import Spec, default_of, find, format_value, specs, value_of
from minillm_repl.views.sweep import sweep

_ALSO_SAMPLING = ("seed", "ban", "bias", "format")
_SHORT = 16  # characters of a system prompt in the table


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
        session = shell.session if argument else _settled(shell)
        value = format_value(spec, value_of(session.settings, name))
        # The last random seed makes the last completion repeatable.
        chosen = (
            f" (last: {session.conversation.seed})"
            if name == "seed" and value == "random" and session.conversation.turns
            else ""
        )
        # In Korean the Korean name comes first: `대화(chat) auto`.
        korean = [alias for alias in spec.aliases if not alias.isascii()]
        shown = f"{korean[0]}({name})" if korean and current_language() == "ko" else name
        shell.screen.out.print(Text(f"{shown} {value}{chosen}"), soft_wrap=True)

    words = tuple(spec.special_values)
    usage = "|".join(filter(None, (spec.metavar, *words)))
    value: Form = (Words("value", usage, *words, DEFAULT),)
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
    session, model = shell.session, shell.session.workspace.model
    before = session.chosen, dict(session.sources)
    chatted = (
        session.settings.chat is not False
        and model is not None
        and model.checkpoint.chat_template is not None
    )
    session.set(name, text, said)
    try:
        if model is not None:  # a token that it does not have is told at once
            eos_token_ids = session.conversation.eos_token_ids(model)
            model.token_rules(session.chosen, eos_token_ids)
    except UserError:
        session.chosen, session.sources = before
        raise
    # Only `chat` decides whether the text so far still is what the model answers.
    if model is None or session.chosen.chat is before[0].chat:
        return
    try:
        chats = is_chatting(model, session.settings.chat)
    except UserError:
        session.chosen, session.sources = before  # `:chat on` for a model that cannot chat
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
    return "Sampling" if name in specs(Sampling) or name in _ALSO_SAMPLING else "Talk"


SETTING_COMMANDS = tuple(_command(name, spec) for name, spec in specs(Settings).items())


@command(
    "set",
    arguments=(Words("change", "NAME [VALUE]", *specs(Settings)),),
    aliases=("설정",),
    example=":set top-k 40",
)
def set_(shell: Shell, asked: Arguments) -> None:
    """Show all settings; show or change one.

    `:set top-k 40` is the same as `:top-k 40`. `:set top-k default` drops what you chose.

    The table says where each value comes from. What you set counts first: in the session, as a
    flag, as a variable, in the configuration file. Where you set nothing, the value is that of the
    model's files (generation_config.json, or the keys general.sampling of a GGUF file), or the
    program's. Another model brings its own values. A chat template may have a system prompt of its
    own, which it writes where you set none.
    """
    if not asked.change:
        _show_all(shell)
        return
    # `top-k 40`, `top-k=40` and `top-k = 40`.
    # The pattern matches every text: each part may be empty.
    words = re.fullmatch(r"([^\s=]*)\s*=?\s*(.*)", asked.change, re.DOTALL)
    name, value = words.groups()  # type: ignore[union-attr]
    if value:
        change(shell, name, value)
    known, spec = find(Settings, name)
    session = shell.session if value else _settled(shell)
    shown = format_value(spec, value_of(session.settings, known))
    shell.screen.out.print(Text(f"{known} {shown}"), soft_wrap=True)


def _show_all(shell: Shell) -> None:
    """Show all settings, and where each value comes from."""
    session = _settled(shell)
    sources = {name: session.source(name) for name in specs(Settings)}
    shown, prompt = session.settings, ""
    if not shown.system:
        prompt = _template_prompt(session.workspace.model)
    if prompt:
        short = prompt if len(prompt) <= _SHORT else prompt[: _SHORT - 1] + "…"
        shown, sources["system"] = replace(shown, system=short), "model"
    labels = {name: _(SOURCES[source]) for name, source in sources.items()}
    shell.screen.out.print(settings_table(shown, labels, shell.screen.out.width))
    if len(prompt) > _SHORT:  # in a column it would take the room of the meanings
        shell.screen.note(_("the system prompt of the chat template: {prompt}", prompt=prompt))


def _settled(shell: Shell) -> Session:
    """Return the session once a model that is loading is open: it brings its own settings.

    Raises UserError if that model cannot be opened.
    """
    if shell.session.workspace.loading is not None:
        shell.require_model()
    return shell.session


def _template_prompt(model: LoadedModel | None) -> str:
    """Return the system prompt that the model's chat template writes by itself."""
    if model is None or model.checkpoint.chat_template is None:
        return ""
    from minillm_repl.chat.system_prompt import default_system_prompt

    return safe_line(default_system_prompt(model.checkpoint.chat_template))
