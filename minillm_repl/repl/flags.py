"""The command line as argparse reads it: help in topics and in our language, values with dashes."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.repl.quoting import translate_usage

TOPICS = {  # of `--help TOPIC`: the groups of flags
    "start": N_("start"),
    "once": N_("one shot"),
    "lessons": N_("lessons (in the REPL: `:learn`)"),
    "sampling": N_("sampling (in the REPL: `:set`)"),
    "training": N_("training (in the REPL: `:help train`)"),
}
ALL = "all"


def topic_title(topic: str) -> str:
    """Return the title of a group of flags, in the language of the user."""
    title = TOPICS[topic]
    return _(title)


class Parser(argparse.ArgumentParser):
    """A parser that takes `-p -5도`, and prints its help by topics."""

    def format_help(self, topic: str = "") -> str:
        """Return the help of a group of flags, of all flags, or in short."""
        short = {_("options"), topic_title("once")}
        shown = {topic_title(topic)} if topic in TOPICS else short
        formatter = self._get_formatter()
        if topic not in TOPICS:
            formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
            formatter.add_text(self.description)
        for group in self._action_groups:
            if topic == ALL or group.title in shown:
                formatter.start_section(group.title)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        if not topic:
            topics = ", ".join([*TOPICS, ALL])
            formatter.add_text(
                _("`--help TOPIC` lists more flags; topics: {topics}; a command, such as lens",
                  topics=topics)
            )  # fmt: skip
        if topic in ("", ALL):
            formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what argparse parses, and values that begin with a dash."""
        return super().parse_known_args(
            self._join_dashed_values(sys.argv[1:] if args is None else args), namespace
        )

    def _join_dashed_values(self, words: Sequence[str]) -> list[str]:
        """Tie each value to its flag if it begins with a dash and is no flag: `-p -5도`."""
        # argparse takes any word with a dash before it for a flag, unless it is a number.
        flags, joined = self._option_string_actions, list[str]()
        for word in words:
            flag = flags.get(joined[-1]) if joined else None
            if (
                flag
                and flag.nargs is None
                and word.startswith("-")
                and word.partition("=")[0] not in flags
            ):
                joined[-1] = f"{flag.option_strings[-1]}={word}"
            else:
                joined.append(word)
        return joined

    def error(self, message: str) -> NoReturn:
        """End the program as for wrong usage."""
        self.exit(
            2,
            _("minillm-repl: {message}; --help lists the flags", message=message) + "\n",
        )


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's help, in our language, some of whose letters are two cells wide."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = self._max_help_position  # one column, whatever is listed

    def add_usage(
        self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None
    ) -> None:
        """Add the line of usage."""
        super().add_usage(usage, actions, groups, prefix or _("usage: "))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return translate_usage(super()._format_action_invocation(action))
        # As Python 3.13 does: the value once, after all names.
        value = self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {value}"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return translate_usage(super()._format_args(action, default_metavar))

    def _format_action(self, action: argparse.Action) -> str:
        text, flags = super()._format_action(action), self._format_action_invocation(action)
        # argparse pads by letters; a wide one takes a space of the padding.
        return text.replace(flags + " " * (cell_len(flags) - len(flags)), flags, 1)

    def _split_lines(self, text: str, width: int) -> list[str]:
        if cell_len(text) == len(text):  # argparse wraps by letters
            return super()._split_lines(text, width)
        return [line.plain.rstrip() for line in Text(text).wrap(Console(), width)]
