"""Care: where somebody speaks of suicide, self-harm or violence, the program answers, not a model.

A tiny model must not answer then: it would say anything. The program says a fixed kind sentence,
that this is a tiny model, and whom to call. care.txt has the sentences and the patterns. The model
never sees what was said, and the conversation does not keep it.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.box import Box
from rich.table import Table
from rich.text import Text

from minillm_repl.language import Language, _
from minillm_repl.render.console import FIGURES, GOOD, TITLE
from minillm_repl.repl.care_patterns import patterns, read_sections
from minillm_repl.repl.care_text import make_plain, may_be_korean
from minillm_repl.repl.layouts import from_latin_keys
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.storage.paths import is_shipped

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

Topic = Literal["self", "others"]  # harm to oneself; violence by others

_MAX_READ = 4_000  # characters: a crisis is said in fewer, and patterns with gaps are slow

_BAR = Box("┃   \n" * 8)  # only a left edge


@dataclass(frozen=True)
class Help:
    """What is said in place of a model's answer."""

    topic: Topic
    answer: str
    about: str  # that this is a tiny model
    calls: tuple[tuple[str, str], ...]  # a number or a place, and what it is

    def as_json(self) -> dict[str, object]:
        """Return the event of `--json`."""
        calls = [{"call": number, "what": what} for number, what in self.calls]
        return {"event": "care", "text": self.answer, "about": self.about, "calls": calls}

    def __str__(self) -> str:
        calls = (f"{number}: {what}" for number, what in self.calls)
        return "\n".join([self.answer, self.about, *calls])

    def draw(self) -> Table:
        """Return the help, set apart by a bar from what a model says."""
        calls = Table.grid(padding=(0, 2))
        calls.add_column(no_wrap=True)
        calls.add_column(overflow="fold")
        for number, what in self.calls:
            calls.add_row(Text(number, f"{TITLE} {GOOD}"), what)
        framed = Table(box=_BAR, show_header=False)
        framed.add_column(overflow="fold")  # every word is shown, however narrow it is
        framed.add_row(Text(self.answer, TITLE))
        framed.add_row(Text(self.about))
        framed.add_row(calls)
        framed.add_row(Text(_("The program says this, not the model · :help care"), FIGURES))
        return framed


def find_help(text: str) -> Help | None:
    """Return what to say to a text that speaks of a crisis; None for any other."""
    text = unicodedata.normalize("NFC", text[-_MAX_READ:])
    readings: dict[Language, str] = {"ko": text}
    if not re.search("[ㄱ-ㅣ가-힣]", text):
        # Latin letters may be Korean typed in the wrong layout: both readings are tried.
        readings = {"en": text}
        if may_be_korean(keys := from_latin_keys(text)):
            readings["ko"] = keys
    for language, reading in readings.items():
        topic = find_topic(reading)
        if topic is not None:
            return _make_help(topic, language)
    return None


def find_topic(text: str) -> Topic | None:
    """Tell whether a text speaks of harm to oneself or of violence by others, or of neither."""
    plain = make_plain(text)
    scripts: list[Language] = ["ko"] if re.search("[ㄱ-ㅣ]", plain) else []
    if re.search("[a-z]{3}", plain):
        scripts.append("en")
    topics: tuple[Topic, ...] = ("self", "others")
    for script in scripts:
        left = patterns("harmless", script).without(plain)
        for topic in topics:
            if patterns(topic, script).found(left):
                return topic
    return None


def _make_help(topic: Topic, language: Language) -> Help:
    sections = read_sections()
    calls = [line.partition("=") for line in sections[f"call {language}"]]
    return Help(
        topic=topic,
        answer="\n".join(sections[f"answer {topic} {language}"]),
        about="\n".join(sections[f"about {language}"]),
        calls=tuple((number.strip(), what.strip()) for number, _equals, what in calls),
    )


def help_for(shell: "Shell", text: str, model: LoadedModel | None) -> Help | None:
    """Return what the program says to a text in the place of `model`; None if the model answers.

    `model` is None where a lesson listens.
    """
    in_lesson = shell.line_handler is not None
    caring = is_caring(shell.session.settings.care, None if in_lesson else model)
    return find_help(text) if caring else None


def is_crisis(shell: "Shell", line: str) -> bool:
    """Tell whether the program answers a line in the place of the open model."""
    return help_for(shell, line, shell.session.workspace.model) is not None


def offer_help(shell: "Shell", text: str, model: LoadedModel | None = None) -> bool:
    """Answer a text that speaks of a crisis, and tell whether it was one."""
    crisis_help = help_for(shell, text, model)
    if crisis_help is not None:
        shell.echo(text, "\n")
        tell_help(shell, crisis_help, json=False)
    return crisis_help is not None


def offer_help_for_command(shell: "Shell", argument: str) -> bool:
    """Answer what follows a command, as `offer_help` does what is said to the open model."""
    crisis_help = help_for(shell, argument, shell.session.workspace.model)
    if crisis_help is not None:
        tell_help(shell, crisis_help, json="--json -" in argument)
    return crisis_help is not None


def tell_help(shell: "Shell", crisis_help: Help, *, json: bool) -> None:
    """Show the help, or print its event."""
    if json:
        from minillm_repl.render.json_lines import print_help_json

        print_help_json(crisis_help.as_json(), shell.screen.out.file)
    else:
        shell.screen.out.print(crisis_help.draw())


def is_caring(setting: bool | None, model: LoadedModel | None) -> bool:
    """Tell whether the program answers a crisis in place of `model`; None is a lesson.

    `setting` is that of `:care`. By itself it is on in lessons and for the shipped models that
    chat: who works with another model has a reason to see what that model says.
    """
    if setting is not None or model is None:
        return setting is not False
    if model.server is not None:
        return model.server.cares
    return model.checkpoint.chat_template is not None and is_shipped(model.checkpoint.path)
