"""Flags in, a session out. This module and the first prompt need neither numpy nor torch."""

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

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
from minillm_repl.render.completion_scripts import SHELLS, completion_script
from minillm_repl.render.console import make_screen
from minillm_repl.repl.flags import ALL, TOPICS, Formatter, Parser, topic_title
from minillm_repl.repl.job_control import suspendable
from minillm_repl.repl.registry import discover, load_plugins
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS, Settings
from minillm_repl.repl.train_request import TRAINING_FLAGS, training_request
from minillm_repl.settings import Spec, format_value, specs, switch, value_of, words_of
from minillm_repl.storage.paths import shipped_names
from minillm_repl.training.plan import TrainPlan

_EXAMPLES = N_(
    "examples:\n"
    "  minillm-repl                                          chat with the model that ships "
    "with the program\n"
    "  minillm-repl nalssi -p 날씨 --verbose                 show the candidates at each step\n"
    "  minillm-repl --ckpt new.safetensors --train story.txt --steps 500\n"
    "  echo 날씨 | minillm-repl -p - --json                  print every number as JSON lines\n"
)


def make_parser() -> Parser:
    """Return the parser of the command line; values stay text, for one place to check them all."""
    parser = Parser(
        prog="minillm-repl",
        usage=_("minillm-repl [NAME] [--FLAG VALUE ...]"),
        description=_(
            "Chat with a small language model, train it, and inspect every number that it computes."
        ),
        epilog=_(_EXAMPLES),
        formatter_class=Formatter,
        allow_abbrev=False,
        add_help=False,  # its own text would be English in every language
    )
    options = parser.add_argument_group(_("options"))
    opened = _("the model to open, as --ckpt takes it")
    options.add_argument("name", metavar="NAME", nargs="?", help=opened)
    shown = _("show this help, or that of a TOPIC or a command, and exit")
    options.add_argument("-h", "--help", metavar="TOPIC", nargs="?", const="", help=shown)
    written = _("print what lets a shell complete flags and models: bash, zsh or fish")
    options.add_argument("--completion", metavar="SHELL", choices=SHELLS, help=written)
    groups = {topic: parser.add_argument_group(topic_title(topic)) for topic in TOPICS}
    _add_start(groups["start"])
    _add_one_shot(groups["once"])
    _add_lessons(groups["lessons"])
    for name, spec in specs(Settings).items():
        _flag(groups["sampling"], name, spec, value_of(Settings, name))
    _add_training(groups["training"])
    return parser


def _add_start(group: "argparse._ArgumentGroup") -> None:
    for name, spec in specs(Launch).items():
        _flag(group, name, spec, value_of(Launch, name))
    no_lines = _("keep neither a history of typed lines nor sessions")
    group.add_argument(
        "--no-history", dest="history", action="store_const", const="off", help=no_lines
    )
    no_startup = _("do not run the lines of the start-up file")
    group.add_argument(
        "--no-startup", dest="startup", action="store_const", const="off", help=no_startup
    )
    newest = _("go on with the session of last time, its model and its settings")
    group.add_argument("--continue", dest="go_on", action="store_true", help=newest)
    named = _("go on with the session NAME, or begin it (in the REPL: `:session`)")
    group.add_argument("--session", metavar="NAME", help=named)
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
    shown = _("show what a class has done: the progress files in FOLDER (docs/teaching.md)")
    group.add_argument(
        "--class", dest="classroom", metavar="FOLDER", nargs="?", const="", help=shown
    )
    saved = _("after --auto, save the lesson as .html, .svg or .txt; with --class, a .csv table")
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


def _show_help(parser: Parser, topic: str, environment: Environment) -> int:
    """Print the help of the program, of a group of flags, or of a command."""
    name = topic.lower().lstrip(":/")
    if name in ("", ALL, *TOPICS):
        environment.stdout.write(parser.format_help(name))
        return ExitStatus.OK
    from minillm_repl import commands, views
    from minillm_repl.commands.program import print_help

    try:
        found = discover(commands, views, find_plugins=load_plugins).get(name)
    except UserError as error:
        topics = ", ".join([*TOPICS, ALL])
        environment.stderr.write(f"minillm-repl: {error}\n")
        environment.stderr.write(_("topics of --help: {topics}", topics=topics) + "\n")
        return ExitStatus.USAGE
    print_help(make_screen(environment).out, found)
    return ExitStatus.OK


def _completion_script(parser: Parser, shell: str) -> str:
    every = specs(TrainPlan) | specs(Settings) | specs(Launch)
    words = {name: words_of(spec) for name, spec in every.items()}
    words["ckpt"] = (*words["ckpt"], *shipped_names())
    words["help"] = (*TOPICS, ALL)
    return completion_script(parser, shell, words, shipped_names())


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


def _check_session(options: argparse.Namespace, *, is_training: bool) -> None:
    """Raise UserError where a session is asked for beside what has none."""
    if options.go_on and options.session is not None:
        raise UserError(_("--continue cannot be used with --session"))
    others = [options.eval, options.serve, options.lesson]
    if (options.go_on or options.session is not None) and (is_training or others != [None] * 3):
        raise UserError(_("--continue and --session go with a conversation alone"))


def _main(arguments: Sequence[str] | None, environment: Environment) -> int:
    parser = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if options.help is not None:
        return _show_help(parser, options.help, environment)
    if options.completion is not None:
        environment.stdout.write(_completion_script(parser, options.completion))
        return ExitStatus.OK
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
        if options.name is not None and launch.ckpt != "auto" and "ckpt" in flags:
            raise UserError(_("name the model once: NAME or --ckpt NAME"))
        if options.json and alone == [None, None, None]:
            raise UserError(_("--json needs a prompt (-p TEXT), --train CORPUS or --eval FILE"))
        if options.eval is not None and alone.count(None) < 2:
            raise UserError(_("--eval cannot be used with -p or --train"))
        _check_session(options, is_training=training is not None)
        shows_class = options.classroom is not None
        if options.auto and options.lesson is None:
            raise UserError(_("--auto needs --lesson N"))
        if options.export and not options.auto and not shows_class:
            raise UserError(_("--export needs --lesson N --auto, or --class FOLDER"))
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
        return run(start) if options.classroom is None else _show_class(start)


def _show_class(start: Start) -> ExitStatus:
    """Show what a class has done: no model is opened for it."""
    from minillm_repl.lessons.classroom import show_class

    show_class(make_screen(start.environment, start.launch.color), start.options)
    return ExitStatus.OK
