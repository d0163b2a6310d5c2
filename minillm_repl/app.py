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

from minillm_repl import commands
from minillm_repl.checkpoint.families.find import family_title
from minillm_repl.checkpoint.peek import in_folder, read_config
from minillm_repl.commands import learn, train
from minillm_repl.configuration import Launch
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE, Screen, make_console, make_screen
from minillm_repl.render.tables import headline
from minillm_repl.repl.environment import be_somewhere
from minillm_repl.repl.loop import attempt, run_beside, run_interactive, run_script
from minillm_repl.repl.model_loading import Opening
from minillm_repl.repl.one_shot import one_shot
from minillm_repl.repl.plain_prompt import terminal_beside
from minillm_repl.repl.progress import Progress
from minillm_repl.repl.recent_models import Recent
from minillm_repl.repl.registry import discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.standard_streams import decoded_lines
from minillm_repl.repl.view_files import check_ours
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import (
    DEFAULT,
    FIRST,
    find,
    is_shipped,
    of_another_format,
    shipped,
    there,
    title,
    user_path,
)


class ExitStatus(IntEnum):
    """What the program ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


def run(
    options: argparse.Namespace, launch: Launch, settings: Settings, training: train.Request | None
) -> ExitStatus:
    """Do what the flags ask for. Raises UserError, and KeyboardInterrupt after Ctrl-C."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun has started several of us
    typed = options.prompt is None and not options.json and not several and sys.stdin.isatty()
    interactive = typed and sys.stdout.isatty()
    beside = terminal_beside() if typed and not interactive else None
    screen = make_screen(launch.color, interactive)  # type: ignore[arg-type]
    if several and os.environ.get("RANK") != "0":
        screen = screen.silent()
    be_somewhere(screen)
    ckpt = (DEFAULT if options.lesson is None else FIRST) if launch.ckpt == "auto" else launch.ckpt
    shell = _make_shell(screen, launch, settings, ckpt)
    shell.session.chosen = launch.ckpt != "auto" or options.lesson is not None
    assert shell.session.path is not None
    if shell.session.own and training is None and of_another_format(shell.session.path):
        raise UserError(_("{path} does not exist", path=safe_line(ckpt)))
    if options.prompt is not None:
        once = partial(one_shot, shell, options.prompt, echo=options.echo, json=options.json)
        return ExitStatus.OK if attempt(shell, once) else ExitStatus.FAILED
    if options.auto:
        return (
            ExitStatus.OK
            if attempt(shell, partial(_lesson_alone, shell, options))
            else ExitStatus.FAILED
        )
    if training is not None:
        done = _train(shell, training, ckpt, json=options.json)
        if done != ExitStatus.OK or not interactive:
            return done
    elif interactive or beside:
        _greet(shell, make_console(beside) if beside else screen.out)
    if options.lesson is not None:
        shell.session.start_loading()
        attempt(shell, partial(shell.run, f":learn {options.lesson}"))
    return ExitStatus(_visit(shell, interactive, beside, launch.history_file))


def _make_shell(screen: Screen, launch: Launch, settings: Settings, ckpt: str) -> Shell:
    opening = Opening(
        launch.device,
        launch.dtype,
        launch.context,
        user_path(launch.vocab) if launch.vocab else None,
        launch.allow_nonfinite,
        launch.threads,
        launch.quant,
    )
    session = Session(
        settings, opening, Recent(launch.recent_file), threads=launch.threads, path=find(ckpt)
    )
    assert session.path is not None
    session.own = not there(session.path)
    return Shell(session, screen, discover(commands), progress=Progress.of(launch.progress_file))


def _visit(shell: Shell, interactive: bool, beside: TextIO | None, history: Path | None) -> int:
    """Do what is typed or piped in; return the exit code."""
    if interactive:
        return run_interactive(shell, history)
    if beside:
        return run_beside(shell, beside)
    shell.session.start_loading()
    return run_script(shell, decoded_lines(sys.stdin.buffer))


def _train(shell: Shell, training: train.Request, ckpt: str, *, json: bool) -> ExitStatus:
    """Train as asked; return the exit code. Raises UserError if nothing can be saved at `ckpt`."""
    session = shell.session
    assert session.path is not None
    if is_shipped(session.path) and ckpt in shipped():
        raise UserError(
            _("--train needs --ckpt FILE, to save to; the shipped checkpoints stay as they are")
        )
    if in_folder(session.path):
        raise UserError(
            _(
                "--train writes to --ckpt, and {name} is a model's folder: open it, then "
                ":train and :save",
                name=safe_line(ckpt),
            )
        )
    # else what lies there is not wanted, and may be anything
    if not training.new and not training.resume:
        session.start_loading()
    session.own = True  # whoever names a file to train means it
    done = attempt(shell, partial(train.run, shell, training, json=json))
    if shell.interrupted():
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK if done else ExitStatus.FAILED


def _greet(shell: Shell, out: Console) -> None:
    """Say what is open and how to go on. Raises UserError if the file named is no checkpoint."""
    path = shell.session.path
    assert path is not None
    name = safe_line(str(path))
    if shell.session.own:
        about = _("{name} does not exist yet", name=name)
        hint = _(
            "`:train CORPUS` makes it from a text · `:load NAME` opens {names} · :help",
            names=", ".join(shipped()),
        )
    else:
        config = read_config(path)
        family, context = (
            family_title(config, native=not in_folder(path)) if config else "",
            shell.session.opening.context,
        )
        about = headline(title(path), family, config, context=context) if config else name
        hint = _(":help commands · :verbose shows what the model thinks · Ctrl-D leaves")
    out.print(Text.assemble(("minillm-repl", TITLE), f"  {about}"))
    out.print(Text(hint, FIGURES))
    if not shell.session.chosen:
        out.print(
            Text(
                _("speaks Korean · :load story tells English tales · :load nalssi is smallest"),
                FIGURES,
            )
        )


def _lesson_alone(shell: Shell, options: argparse.Namespace) -> None:
    """Go through a lesson, typing what is expected.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    from minillm_repl.lessons.run import run_alone

    if options.export:
        # now, not after the lesson
        check_ours(user_path(options.export), overwrite=options.overwrite)
    shell.session.start_loading()
    shell.progress.file = None  # nobody has learnt anything
    run_alone(learn.make_lesson(shell, options.lesson))
    if options.export:
        shell.run(
            f":export {options.export} lesson" + (" --overwrite" if options.overwrite else "")
        )
