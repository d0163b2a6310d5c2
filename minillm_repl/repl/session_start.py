"""What `--continue` and `--session NAME` ask for, before a model is loaded and after."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.session_file import read_session
from minillm_repl.repl.session_folder import SessionFolder, saved_model_path
from minillm_repl.repl.session_restore import open_session
from minillm_repl.settings import change, default_of, to_texts, value_of
from minillm_repl.storage.paths import exists

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_HOW = ("device", "dtype", "context-length", "quant", "kernels")  # a model is opened

LaunchT = TypeVar("LaunchT")


def asks_for_session(options: argparse.Namespace) -> bool:
    """Tell whether a session is to be opened, or begun under a name."""
    return bool(options.go_on) or options.session is not None


def find_session(
    launch: LaunchT, folder: Path | None, options: argparse.Namespace
) -> tuple[LaunchT, Path | None]:
    """Return the settings of the start with the model of the session that is asked for, and the
    session's file, which need not exist; None: there is none yet.

    Raises UserError for a file that is no session.
    """
    if not asks_for_session(options):
        return launch, None
    if folder is None:
        raise UserError(_("no session is kept with --no-history"))
    sessions, named = SessionFolder(folder), options.session
    path = next(iter(sessions.paths()), None) if named is None else sessions.path(named)
    if path is None or not exists(path):
        return launch, path
    saved = read_session(path)
    model_path = saved_model_path(saved.model)
    if model_path is None or value_of(launch, "ckpt") != "auto":
        return launch, path  # what is asked for now goes before what was open then
    launch = change(launch, "ckpt", str(model_path))
    for name in _HOW:
        if name in saved.launch and getattr(options, name) is None:
            launch = change(launch, name, saved.launch[name])
    return launch, path


def keep_session(shell: "Shell", folder: Path | None, launch: object) -> None:
    """Let the session of a shell be kept in a folder; `launch` is how its models are opened."""
    texts = to_texts(launch)
    shell.recorder.folder = SessionFolder(folder) if folder else None
    shell.recorder.launch = {
        name: texts[name] for name in _HOW if value_of(launch, name) != default_of(launch, name)
    }


def begin_session(
    shell: "Shell", path: Path | None, options: argparse.Namespace, *, is_quiet: bool = False
) -> None:
    """Open the session of a file again; where there is none, the next turn makes it. What a flag
    sets stays.

    Raises UserError.
    """
    if path is None:
        shell.screen.warn(_("no session to continue yet: a new one begins"))
    elif exists(path):
        flags = [name for name, value in vars(options).items() if value is not None]
        open_session(shell, path, flags, is_quiet=is_quiet)
    else:
        shell.recorder.wanted_name = path.stem
