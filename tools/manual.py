"""Writes the manual page, docs/minillm-repl.1, from the parser of the command line.

python -m tools.manual          # a test holds that the file is what this writes
"""

import argparse
from pathlib import Path

from minillm_repl.cli import make_parser
from minillm_repl.language import set_language

PAGE = Path(__file__).resolve().parent.parent / "docs" / "minillm-repl.1"
_FILES = {
    "~/.config/minillm-repl/config.toml": "settings: temp = 0.5",
    "~/.config/minillm-repl/startup": "lines that are run when a session begins",
    "~/.local/state/minillm-repl/": "history, recent models, runs, progress in the lessons",
}
_CODES = {"0": "success", "1": "failure", "2": "wrong usage", "130": "interrupted by Ctrl-C"}


def manual() -> str:
    """Return the page in roff."""
    set_language("en")
    parser = make_parser()
    lines = [
        '.TH MINILLM-REPL 1 "" minillm-repl "User Commands"',
        ".SH NAME",
        "minillm\\-repl \\- talk to a small language model, train it, and look inside",
        ".SH SYNOPSIS",
        ".B minillm\\-repl",
        "[NAME] [\\-\\-FLAG VALUE ...]",
        ".SH DESCRIPTION",
        _roff(parser.description or ""),
        "A line that begins with a colon is a command; :help lists them.",
    ]
    for group in parser._action_groups:
        if group._group_actions:
            lines.append(f".SH {_roff((group.title or '').upper())}")
            lines += [line for action in group._group_actions for line in _entry(action)]
    lines.append(".SH FILES")
    lines += [line for file, what in _FILES.items() for line in _item(file, what)]
    lines.append(".SH EXIT STATUS")
    lines += [line for code, what in _CODES.items() for line in _item(code, what)]
    lines += [".SH EXAMPLES", ".nf", _roff((parser.epilog or "").partition("\n")[2]), ".fi", ""]
    return "\n".join(lines)


def _entry(action: argparse.Action) -> list[str]:
    value = str(action.metavar or "")
    value = f"[{value}]" if value and action.nargs == "?" else value
    names = ", ".join(action.option_strings) or value
    shown = f"{names} {value}" if action.option_strings and action.nargs != 0 else names
    return _item(shown, (action.help or "").replace("%%", "%"))


def _item(name: str, text: str) -> list[str]:
    return [".TP", f".B {_roff(name)}", _roff(text)]


def _roff(text: str) -> str:
    """Return a text in which no character is markup."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    # A line that begins with a dot or a quote would be a request.
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))


if __name__ == "__main__":
    PAGE.write_text(manual(), encoding="utf-8")
