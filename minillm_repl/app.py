"""The program once its flags are read: one function for each thing that it can be started for."""

import argparse
import os
import sys
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from minillm_repl import commands, views
from minillm_repl.checkpoint.families.find import family_title
from minillm_repl.checkpoint.peek import is_in_folder, read_config
from minillm_repl.commands import learn, train
from minillm_repl.configuration import Launch
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE, Screen, make_console, make_screen
from minillm_repl.render.tables import headline
from minillm_repl.repl.environment import ensure_working_directory
from minillm_repl.repl.loop import run_guarded, run_interactive, run_plain, run_script
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.one_shot import run_one_shot
from minillm_repl.repl.plain_prompt import open_terminal
from minillm_repl.repl.progress import Progress
from minillm_repl.repl.registry import discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.standard_streams import decoded_lines
from minillm_repl.repl.view_files import check_overwritable
from minillm_repl.repl.workspace import ReadOnly, RecentModels, Workspace, Writable
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import (
    DEFAULT_MODEL,
    LESSON_MODEL,
    checkpoint_title,
    exists,
    find_checkpoint,
    has_other_format,
    is_shipped,
    shipped_names,
    user_path,
)


class ExitStatus(IntEnum):
    """What the program ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


def run(
    options: argparse.Namespace,
    launch: Launch,
    settings: Settings,
    training: train.TrainRequest | None,
) -> ExitStatus:
    """Do what the flags ask for. Raises UserError, and KeyboardInterrupt after Ctrl-C."""
    is_distributed = (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
    )  # torchrun has started several of us
    reads_terminal = (
        options.prompt is None and not options.json and not is_distributed and sys.stdin.isatty()
    )
    interactive = reads_terminal and sys.stdout.isatty()
    side_terminal = open_terminal() if reads_terminal and not interactive else None
    screen = make_screen(launch.color, interactive)  # type: ignore[arg-type]
    if is_distributed and os.environ.get("RANK") != "0":
        screen = screen.silenced()
    ensure_working_directory(screen)
    ckpt = (
        (DEFAULT_MODEL if options.lesson is None else LESSON_MODEL)
        if launch.ckpt == "auto"
        else launch.ckpt
    )
    shell = _make_shell(screen, launch, settings, ckpt)
    workspace = shell.session.workspace
    workspace.user_selected = launch.ckpt != "auto" or options.lesson is not None
    missing = workspace.writable_path
    if missing is not None and training is None and has_other_format(missing):
        raise UserError(_("{path} does not exist", path=safe_line(ckpt)))
    if options.prompt is not None:
        action = partial(run_one_shot, shell, options.prompt, echo=options.echo, json=options.json)
        return ExitStatus.OK if run_guarded(shell, action) else ExitStatus.FAILED
    if options.auto:
        return (
            ExitStatus.OK
            if run_guarded(shell, partial(_run_lesson_unattended, shell, options))
            else ExitStatus.FAILED
        )
    if training is not None:
        done = _train(shell, training, ckpt, json=options.json)
        if done != ExitStatus.OK or not interactive:
            return done
    elif interactive or side_terminal:
        _greet(shell, make_console(side_terminal) if side_terminal else screen.out)
    if options.lesson is not None:
        shell.session.workspace.start_loading()
        run_guarded(shell, partial(shell.run_line, f":learn {options.lesson}"))
    return ExitStatus(_run_session(shell, interactive, side_terminal, launch.history_file))


def _make_shell(screen: Screen, launch: Launch, settings: Settings, ckpt: str) -> Shell:
    opening = ModelLoader(
        launch.device,
        launch.dtype,
        launch.context_length,
        user_path(launch.vocab_file) if launch.vocab_file else None,
        launch.allow_nonfinite,
        launch.threads,
        launch.quant,
    )
    path = find_checkpoint(ckpt)
    workspace = Workspace(
        loader=opening,
        recent_models=RecentModels(launch.recent_file),
        destination=ReadOnly(path) if exists(path) else Writable(path),
    )
    return Shell(
        Session(settings, workspace),
        screen,
        discover(commands, views),
        progress=Progress.load(launch.progress_file),
    )


def _run_session(
    shell: Shell, interactive: bool, side_terminal: TextIO | None, history: Path | None
) -> int:
    """Do what is typed or piped in; return the exit code."""
    if interactive:
        return run_interactive(shell, history)
    if side_terminal:
        return run_plain(shell, side_terminal)
    shell.session.workspace.start_loading()
    return run_script(shell, decoded_lines(sys.stdin.buffer))


def _train(shell: Shell, training: train.TrainRequest, ckpt: str, *, json: bool) -> ExitStatus:
    """Train as asked; return the exit code. Raises UserError if nothing can be saved at `ckpt`."""
    workspace = shell.session.workspace
    assert workspace.path is not None
    if is_shipped(workspace.path) and ckpt in shipped_names():
        raise UserError(
            _(
                "--train needs --ckpt FILE as the file to save to; the shipped checkpoints are "
                "not changed"
            )
        )
    if is_in_folder(workspace.path):
        raise UserError(
            _(
                "--train saves to --ckpt, but {name} is a model folder: open it, then use "
                ":train and :save",
                name=safe_line(ckpt),
            )
        )
    # else what lies there is not wanted, and may be anything
    if not training.is_new and not training.is_resume:
        workspace.start_loading()
    workspace.destination = Writable(workspace.path)  # whoever names a file to train means it
    done = run_guarded(shell, partial(train.run_training, shell, training, json=json))
    if shell.interrupted():
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK if done else ExitStatus.FAILED


def _greet(shell: Shell, out: Console) -> None:
    """Say what is open and how to go on. Raises UserError if the file named is no checkpoint."""
    workspace = shell.session.workspace
    path = workspace.path
    assert path is not None
    name = safe_line(str(path))
    if workspace.writable_path is not None:
        about = _("{name} does not exist yet", name=name)
        hint = _(
            "`:train CORPUS` trains one on a text · `:load NAME` opens {names} · :help",
            names=", ".join(shipped_names()),
        )
    else:
        config = read_config(path)
        family, context = (
            family_title(config, native=not is_in_folder(path)) if config else "",
            workspace.loader.context_length,
        )
        about = (
            headline(checkpoint_title(path), family, config, context=context) if config else name
        )
        hint = _(":help lists the commands · :verbose shows the model's candidates · Ctrl-D quits")
    out.print(Text.assemble(("minillm-repl", TITLE), f"  {about}"))
    out.print(Text(hint, FIGURES))
    if not workspace.user_selected:
        out.print(
            Text(
                _("This model speaks Korean. English: `:load story` · smallest: `:load nalssi`"),
                FIGURES,
            )
        )


def _run_lesson_unattended(shell: Shell, options: argparse.Namespace) -> None:
    """Go through a lesson, typing what is expected.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    from minillm_repl.lessons.run import run_unattended

    if options.export:
        # now, not after the lesson
        check_overwritable(user_path(options.export), overwrite=options.overwrite)
    shell.session.workspace.start_loading()
    shell.progress.file = None  # nobody has learnt anything
    run_unattended(learn.make_lesson_runner(shell, options.lesson))
    if options.export:
        shell.run_line(
            f":export {options.export} lesson" + (" --overwrite" if options.overwrite else "")
        )
