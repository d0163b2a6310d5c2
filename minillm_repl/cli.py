"""Flags in, a session out. This module and the first prompt need neither numpy nor torch."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from minillm_repl import __version__
from minillm_repl.app import ExitStatus, Start, run
from minillm_repl.configuration import (
    Launch,
    configuration_file,
    configure,
    initial_language,
    read_configuration,
    setting_sources,
)
from minillm_repl.environment import Environment, OutputLost, process_environment
from minillm_repl.errors import UserError
from minillm_repl.language import N_, _, set_language
from minillm_repl.render.console import make_screen
from minillm_repl.repl.job_control import suspendable
from minillm_repl.repl.quoting import translate_usage
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS, Settings
from minillm_repl.repl.train_request import TRAINING_FLAGS, training_request
from minillm_repl.settings import Spec, format_value, specs, switch, value_of
from minillm_repl.training.plan import TrainPlan

_EXAMPLES = N_(
    "examples:\n"
    "  minillm-repl                                          chat with the model that ships "
    "with the program\n"
    "  minillm-repl --ckpt nalssi -p 날씨 --verbose          show the candidates at each step\n"
    "  minillm-repl --ckpt new.safetensors --train story.txt --steps 500\n"
    "  echo 날씨 | minillm-repl -p - --json                  print every number as JSON lines\n"
)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
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
        self.exit(
            ExitStatus.USAGE,
            _("minillm-repl: {message}; --help lists the flags", message=message) + "\n",
        )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's help, in our language, some of whose letters are two cells wide."""

    def add_usage(
        self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None
    ) -> None:
        super().add_usage(usage, actions, groups, prefix or _("usage: "))

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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; values stay text, for one place to check them all."""
    parser = _Parser(
        prog="minillm-repl",
        usage=_("minillm-repl [--FLAG VALUE ...]"),
        description=_(
            "Chat with a small language model, train it, and inspect every number that it computes."
        ),
        epilog=_(_EXAMPLES),
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,  # its own text would be English in every language
    )
    options = parser.add_argument_group(_("options"))
    options.add_argument("-h", "--help", action="help", help=_("show this help message and exit"))
    _add_start(parser.add_argument_group(_("start")))
    _add_one_shot(parser.add_argument_group(_("one shot")))
    _add_lessons(parser.add_argument_group(_("lessons (in the REPL: `:learn`)")))
    sampling = parser.add_argument_group(_("sampling (in the REPL: `:set`)"))
    for name, spec in specs(Settings).items():
        _flag(sampling, name, spec, value_of(Settings, name))
    _add_training(parser.add_argument_group(_("training (in the REPL: `:help train`)")))
    return parser


def _add_start(group: "argparse._ArgumentGroup") -> None:
    for name, spec in specs(Launch).items():
        _flag(group, name, spec, value_of(Launch, name))
    no_lines = _("do not keep a history of typed lines")
    group.add_argument(
        "--no-history", dest="history", action="store_const", const="off", help=no_lines
    )
    no_startup = _("do not run the lines of the start-up file")
    group.add_argument(
        "--no-startup", dest="startup", action="store_const", const="off", help=no_startup
    )
    served = _("answer programs over HTTP, as OpenAI's API does (docs/server.md), until Ctrl-C")
    where = "127.0.0.1:8321"
    group.add_argument("--serve", metavar="HOST:PORT", nargs="?", const=where, help=served)
    shown = _("show program's version number and exit")
    version = f"minillm-repl {__version__}"
    group.add_argument("--version", action="version", version=version, help=shown)


def _add_one_shot(group: "argparse._ArgumentGroup") -> None:
    once = _("complete TEXT (- reads it from stdin), print it and exit")
    group.add_argument("-p", "--prompt", metavar="TEXT", help=once)
    before = _("print the prompt before the completion")
    group.add_argument("--echo", action="store_true", help=before)
    measured = _("measure the model on FILE, as `:eval` does, and exit (docs/evaluation.md)")
    group.add_argument("--eval", metavar="FILE", help=measured)
    every = _("print each step as a JSON line (docs/format.md)")
    group.add_argument("--json", action="store_true", help=every)


def _add_lessons(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--lesson", metavar="N", type=int, help=_("start with lesson N"))
    itself = _("run the lesson without input, as if a learner typed the expected answers, and exit")
    group.add_argument("--auto", action="store_true", help=itself)
    saved = _("after --auto, save the lesson as .html, .svg or .txt")
    group.add_argument("--export", metavar="FILE", help=saved)
    replaces = _("let --export overwrite a file that no view wrote")
    group.add_argument("--overwrite", action="store_true", help=replaces)


def _add_training(group: "argparse._ArgumentGroup") -> None:
    what = _("train --ckpt on a text, save it, then open it; creates --ckpt if it does not exist")
    group.add_argument("--train", metavar="CORPUS", help=what)
    out = _("save the trained model at PATH, not at --ckpt; PATH/ is a folder; LoRA: the adapter")
    group.add_argument("--out", metavar="PATH", help=out)
    made = _("train a new model with the recipe NAME, on --data")
    group.add_argument("--recipe", metavar="NAME", help=made)
    group.add_argument("--data", metavar="FOLDER", help=_("folder with the texts for --recipe"))
    look = _("only show what --train would learn")
    group.add_argument("--check", action="store_true", help=look)
    scratch = _("train from scratch even if --ckpt exists")
    group.add_argument("--new", action="store_true", help=scratch)
    stopped = _("continue the stopped run of --ckpt")
    group.add_argument("--resume", action="store_true", help=stopped)
    again = _("make --ckpt again from its record, and compare the weights bit for bit")
    group.add_argument("--remake", action="store_true", help=again)
    for name in TRAINING_FLAGS:
        _flag(group, name, specs(TrainPlan)[name], value_of(TrainPlan, name))


def _flag(group: "argparse._ArgumentGroup", name: str, spec: Spec, default: object) -> None:
    """Add the flag of one setting. Its value stays text, or None without the flag."""
    spellings = [name, *filter(str.isascii, spec.aliases)]  # a flag has no Hangul in it
    names = [f"--{each}" if len(each) > 1 else f"-{each}" for each in spellings]
    usual = format_value(spec, default) or _("none")
    # argparse formats a help text with %.
    text = _("{help} (default: {value})", help=_(spec.help), value=usual).replace("%", "%%")
    more: dict[str, Any] = {"metavar": spec.metavar}
    if name == "verbose":
        more |= {"nargs": "?", "const": str(DEFAULT_VERBOSE_ROWS)}
    elif spec.parse is switch and spec.special_values == {"on": True, "off": False}:
        more = {"metavar": "on|off", "nargs": "?", "const": "on"}
    elif name == "stop":
        more["action"], text = "append", _("{help}; repeatable", help=text)
    group.add_argument(*names, dest=name, help=text, **more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    environment = process_environment()
    try:
        with environment.flushed():
            flag = _language_flag(arguments)
            set_language(initial_language(flag, environment.variables, configuration_file()))
            return _main(arguments, environment)
    except UserError as error:
        make_screen(environment).fail(str(error))
        return ExitStatus.FAILED
    except OutputLost as error:
        environment.discard_output()
        make_screen(environment).fail(str(error))
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:  # the reader of the output has gone
        environment.discard_output()
        return ExitStatus.FAILED


def _language_flag(arguments: Sequence[str] | None) -> str | None:
    """Return what `--lang` says, which the parser's help is in: so it is read before."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--lang", nargs="?")  # a missing value is an error of the real parser
    flag: str | None = parser.parse_known_args(arguments)[0].lang
    return flag


def _main(arguments: Sequence[str] | None, environment: Environment) -> int:
    parser = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_("unknown arguments: {names}", names=" ".join(unknown)))
    # A setting without its flag is None and leaves the word to a variable or the file.
    flags = {name: value for name, value in vars(options).items() if isinstance(value, str)}
    if options.stop is not None:
        flags["stop"] = shlex.join(options.stop)  # as one types several after `:stop`
    try:
        file = read_configuration(configuration_file())
        launch = configure(Launch(), flags, environment.variables, file)
        settings = configure(Settings(), flags, environment.variables, file)
        sources = setting_sources(Settings(), flags, environment.variables, file)
        training = training_request(options)
        alone = [options.prompt, training, options.eval]
        if options.json and alone == [None, None, None]:
            raise UserError(_("--json needs a prompt (-p TEXT), --train CORPUS or --eval FILE"))
        if options.eval is not None and alone.count(None) < 2:
            raise UserError(_("--eval cannot be used with -p or --train"))
        if (options.auto and options.lesson is None) or (options.export and not options.auto):
            raise UserError(_("--auto needs --lesson N, and --export needs both"))
        if options.overwrite and not options.export:
            raise UserError(_("--overwrite needs --export FILE"))
        if options.prompt is not None and training is not None:
            raise UserError(_("-p and --train cannot be used together; train first"))
    except UserError as error:
        environment.stderr.write(f"minillm-repl: {error}\n")  # there is no screen yet
        return ExitStatus.USAGE
    with suspendable():  # Ctrl-Z shows the cursor again, whatever is drawn
        start = Start(
            environment=environment,
            options=options,
            launch=launch,
            settings=settings,
            sources=sources,
            training=training,
        )
        return run(start)
