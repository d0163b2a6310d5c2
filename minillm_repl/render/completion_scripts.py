"""What lets bash, zsh and fish complete the command line, written from its parser."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SHELLS = ("bash", "zsh", "fish")
_FILES = {"FILE", "PATH", "CORPUS", "FOLDER"}  # metavars that stand for files


@dataclass(frozen=True)
class _Flag:
    names: tuple[str, ...]
    takes_value: bool
    needs_value: bool
    words: tuple[str, ...]  # that the value can be
    takes_file: bool
    help: str


def completion_script(
    parser: argparse.ArgumentParser,
    shell: str,
    words: Mapping[str, Sequence[str]],
    models: Sequence[str],
) -> str:
    """Return the script for a shell, which the user's own start-up file reads.

    `words` has what the values of some flags can be, by `dest`; `models` the names that always open
    one.
    """
    flags = [
        _flag(action, words.get(action.dest, ()))
        for action in parser._actions
        if action.option_strings
    ]
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](flags, models)


def _flag(action: argparse.Action, words: Sequence[str]) -> _Flag:
    takes_value = action.nargs != 0
    # The help ends with the default, which is of no use in a menu.
    text = (action.help or "").replace("%%", "%").partition(" (")[0]
    return _Flag(
        names=tuple(action.option_strings),
        takes_value=takes_value,
        needs_value=takes_value and action.nargs != "?",
        words=(*(action.choices or ()), *words) if takes_value else (),
        takes_file=str(action.metavar) in _FILES,
        help=text,
    )


def _quoted(text: str) -> str:
    """Return a text as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _joined(names: Iterable[str], separator: str = " ") -> str:
    return separator.join(names)


def _bash(flags: list[_Flag], models: Sequence[str]) -> str:
    cases = []
    files = 'compgen -f -- "$word"'
    for flag in flags:
        offered = []
        if flag.words:
            offered.append(f'compgen -W {_quoted(_joined(flag.words))} -- "$word"')
        if flag.takes_file:
            offered.append(files)
        if offered:
            act = f"COMPREPLY=($({_joined(offered, '; ')}))"
        elif flag.needs_value:
            act = ":"
        else:
            continue
        names = _joined((name for name in flag.names), "|")
        cases.append(f"    {names}) {act}; return ;;")
    every = _joined(name for flag in flags for name in flag.names)
    return f"""\
# Completion of minillm-repl in bash; in ~/.bashrc: source <(minillm-repl --completion bash)
_minillm_repl() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  COMPREPLY=()
  case $before in
{_joined(cases, chr(10))}
  esac
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W {_quoted(every)} -- "$word"))
  else
    COMPREPLY=($(compgen -W {_quoted(_joined(models))} -- "$word"; {files}))
  fi
}}
complete -o filenames -F _minillm_repl minillm-repl
"""


def _zsh(flags: list[_Flag], models: Sequence[str]) -> str:
    lines = []
    for flag in flags:
        told = flag.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        action = f"({_joined(flag.words)})" if flag.words else "_files" if flag.takes_file else " "
        optional = "" if flag.needs_value else ":"
        value = f"{optional}:{flag.names[-1].lstrip('-')}:{action}" if flag.takes_value else ""
        lines += [f"  {_quoted(f'{name}[{told}]{value}')}" for name in flag.names]
    # The space before the action: else zsh gives it options of its own.
    names = (
        f'  \'::model: _alternative "names\\:name\\:({_joined(models)})" "files\\:file\\:_files"\''
    )
    specs = _joined([*lines, names], " \\\n")
    return f"""\
#compdef minillm-repl
# Completion of minillm-repl in zsh; a folder of $fpath has it as the file _minillm-repl.
_arguments -s \\
{specs}
"""


def _fish(flags: list[_Flag], models: Sequence[str]) -> str:
    lines = [
        "# Completion in fish; in config.fish: minillm-repl --completion fish | source",
        f"complete -c minillm-repl -a {_quoted(_joined(models))}",
    ]
    for flag in flags:
        names = [
            f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names
        ]
        value = " -x" if flag.needs_value and not flag.takes_file else " -r" * flag.needs_value
        words = f" -a {_quoted(_joined(flag.words))}" if flag.words else ""
        told = _quoted(flag.help).replace("'\\''", "\\'")
        lines.append(f"complete -c minillm-repl {_joined(names)}{value}{words} -d {told}")
        if words and not flag.needs_value:  # fish looks for such a value after = only
            last = f"'contains -- (commandline -opc)[-1] {_joined(flag.names)}'"
            lines.append(f"complete -c minillm-repl -n {last} -f{words}")
    return "\n".join([*lines, ""])
