"""The program once its flags are read: one function for each thing that it can be started for."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from minillm_repl import commands, views
from minillm_repl.checkpoint.load_save import read_model_type
from minillm_repl.commands import train
from minillm_repl.commands.one_shot import complete_once, evaluate_once
from minillm_repl.configuration import Launch
from minillm_repl.environment import (
    Environment,
    decoded_lines,
    leave_missing_folder,
    spool_stdin,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _, current_language
from minillm_repl.render.console import Screen, make_console, make_screen
from minillm_repl.repl.greeting import greet
from minillm_repl.repl.loop import (
    PlainLineReader,
    open_terminal,
    run_guarded,
    run_plain,
    run_script,
)
from minillm_repl.repl.registry import discover, load_plugins
from minillm_repl.repl.session import Session
from minillm_repl.repl.session_start import (
    asks_for_session,
    begin_session,
    find_session,
    keep_session,
)
from minillm_repl.repl.settings import Settings, Source
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.startup import run_startup
from minillm_repl.repl.train_request import TrainRequest
from minillm_repl.repl.workspace import ReadOnly, RecentModels, Workspace, Writable
from minillm_repl.safetext import safe_line
from minillm_repl.storage.missing import find_model
from minillm_repl.storage.paths import (
    DEFAULT_MODEL,
    ENGLISH_MODEL,
    LESSON_MODEL,
    exists,
    is_shipped,
    server_url,
    shipped_names,
)

if TYPE_CHECKING:
    from minillm_repl.serve.server import Address


class ExitStatus(IntEnum):
    """What the program ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the program is started with."""

    environment: Environment
    options: argparse.Namespace
    launch: Launch
    settings: Settings
    sources: Mapping[str, Source]  # where the user has set those that are set
    training: TrainRequest | None

    @property
    def checkpoint(self) -> str:
        """What to open, as the user named it, or else what suits."""
        options = self.options
        if options.name is not None or self.launch.ckpt != "auto":
            return str(options.name or self.launch.ckpt)
        if options.lesson is not None:
            return LESSON_MODEL
        # What a script opens must not depend on the locale.
        is_scripted = options.serve is not None or self.training is not None
        if self.has_person and not is_scripted and current_language() == "en":
            return ENGLISH_MODEL
        return DEFAULT_MODEL

    @property
    def has_person(self) -> bool:
        """Whether somebody types: not with -p, --eval, --json or in several processes."""
        options, environment = self.options, self.environment
        is_one_shot = options.prompt is not None or options.eval is not None
        alone = not is_one_shot and not options.json and environment.world_size == 1
        return alone and environment.stdin.isatty()


def run(start: Start) -> ExitStatus:
    """Do what the flags ask for. Raises UserError, and KeyboardInterrupt after Ctrl-C."""
    terminal = _terminal(start)
    interactive = terminal is start.environment.stdout
    screen = make_screen(start.environment, start.launch.color, interactive)
    if not start.environment.is_first_process:
        screen = screen.silenced()  # torchrun starts several, and one of them draws
    moved = leave_missing_folder()  # before any path is looked up
    if moved:
        screen.warn(moved)
    folder = start.launch.session_folder
    launch, session = find_session(start.launch, folder, start.options)
    start = replace(start, launch=launch)
    shell = _make_shell(screen, start)
    is_kept = terminal is not None or asks_for_session(start.options)
    keep_session(shell, folder if is_kept else None, launch)
    if start.options.prompt is not None:
        return _run_guarded(
            shell, partial(complete_once, shell, start.environment, start.options, session)
        )
    if start.options.eval is not None:
        return _finish(shell, partial(evaluate_once, shell, start.options))
    if start.options.serve is not None:
        return _run_guarded(shell, partial(_serve, shell, start))
    if start.options.auto:
        from minillm_repl.lessons.unattended import run_lesson

        return _run_guarded(shell, partial(run_lesson, shell, start.options))
    if start.training is not None:
        with ExitStack() as stack:
            training = start.training
            if training.corpus == "-":
                spooled = spool_stdin(start.environment, stack)
                training = replace(training, corpus=str(spooled))
            status = _train(shell, start, training)
        # At a terminal the trained model is open, and one goes on with it.
        if status != ExitStatus.OK or not interactive:
            return status
    elif terminal is not None:
        greet(
            shell,
            screen.out if interactive else make_console(terminal, start.environment.variables),
        )
    if terminal is not None:
        run_startup(shell, start.launch.startup_file)
    return ExitStatus(_run_session(shell, start, terminal, session))


def _terminal(start: Start) -> TextIO | None:
    """Return where a person who types sees the prompt; None if nobody types."""
    if not start.has_person:
        return None
    environment = start.environment
    return environment.stdout if environment.stdout.isatty() else open_terminal(environment)


def _make_shell(screen: Screen, start: Start) -> Shell:
    """Return the shell before anything is loaded.

    Raises UserError for a file that is not there and that no training could make.
    """
    launch, is_named = start.launch, start.options.name is not None
    path = find_model(start.checkpoint, is_made=start.training is not None, is_named=is_named)
    is_there = exists(path) or bool(server_url(path))
    workspace = Workspace(
        loader=launch.loader(start.environment.variables),
        recent_models=RecentModels(launch.recent_file),
        destination=ReadOnly(path) if is_there else Writable(path),
        user_selected=(launch.ckpt, start.options.name, start.options.lesson)
        != ("auto", None, None),
    )
    # No command is imported here: a prompt needs none.
    registry = discover(commands, views, find_plugins=load_plugins)
    session = Session(start.settings, workspace, sources=dict(start.sources))
    return Shell(session=session, screen=screen, registry=registry, progress=launch.load_progress())


def _run_guarded(shell: Shell, action: Callable[[], object]) -> ExitStatus:
    return ExitStatus.OK if run_guarded(shell, action) else ExitStatus.FAILED


def _run_session(shell: Shell, start: Start, terminal: TextIO | None, session: Path | None) -> int:
    """Do what is typed or piped in; return the exit code."""
    if start.options.lesson is not None:
        # The lesson asks for the model at once: nothing is won by waiting for the prompt.
        shell.session.workspace.start_loading()
        run_guarded(shell, partial(shell.run_line, f":learn {start.options.lesson}"))
    if asks_for_session(start.options):
        shell.session.workspace.start_loading()
        run_guarded(shell, partial(begin_session, shell, session, start.options))
    stdin = start.environment.stdin
    if shell.screen.interactive:
        from minillm_repl.repl.prompt import run_interactive

        return run_interactive(shell, start.launch.history_file)
    if terminal:
        return run_plain(shell, PlainLineReader(stdin, terminal))
    shell.session.workspace.start_loading()  # while the first lines come
    return run_script(shell, decoded_lines(stdin.buffer))


def _serve(shell: Shell, start: Start) -> None:
    """Answer requests over HTTP until Ctrl-C. Raises UserError."""
    try:
        from minillm_repl.serve.server import parse_address, serve
    except ImportError as error:
        raise UserError(
            _(
                "--serve needs the package {name}: `pip install 'minillm-repl[serve]'`",
                name=safe_line(str(error.name)),
            )
        ) from None
    address = parse_address(start.options.serve)
    key = start.environment.variables.get("MINILLM_API_KEY", "")
    if not key and not address.is_loopback:
        raise UserError(
            _(
                "at {address} others can reach the model: set a key in MINILLM_API_KEY",
                address=safe_line(address.url),
            )
        )
    shell.session.workspace.start_loading()
    model = shell.require_model()

    def say(bound: "Address") -> None:
        shell.screen.note(
            _(
                "{model} answers at {address} · Ctrl-C ends the server",
                model=safe_line(model.name),
                address=safe_line(bound.url),
            )
        )

    serve(model, shell.session.settings, address, key, say)


def _train(shell: Shell, start: Start, training: TrainRequest) -> ExitStatus:
    """Train as asked. Raises UserError if nothing can be saved at the named file."""
    workspace = shell.session.workspace
    assert workspace.path is not None
    action = partial(train.run_training, shell, training, json=start.options.json)
    if training.is_remake:  # Nothing is written: any model will do.
        workspace.start_loading()
        return _run_guarded(shell, action)
    if training.out:
        if workspace.writable_path is not None and not training.is_new and not training.is_resume:
            raise UserError(_("{path} does not exist", path=safe_line(start.checkpoint)))
        workspace.start_loading()
        return _finish(shell, action)
    if is_shipped(workspace.path) and start.checkpoint in shipped_names():
        raise UserError(
            _(
                "--train needs --out FILE, or --ckpt FILE, to save to; the shipped checkpoints "
                "are not changed"
            )
        )
    if read_model_type(workspace.path):
        raise UserError(
            _(
                "{name} is a model folder, which is not changed: name where the trained model "
                "goes with --out FILE, or --out FOLDER/",
                name=safe_line(start.checkpoint),
            )
        )
    # A new run, or a resumed one, does not want what lies there; it may be anything.
    if not training.is_new and not training.is_resume:
        workspace.start_loading()
    workspace.destination = Writable(workspace.path)  # the user named this file for the result
    return _finish(shell, action)


def _finish(shell: Shell, action: Callable[[], object]) -> ExitStatus:
    status = _run_guarded(shell, action)
    # Ctrl-C keeps what was learnt or measured, and a script must see that it was not all.
    return ExitStatus.INTERRUPTED if shell.interrupted() else status
