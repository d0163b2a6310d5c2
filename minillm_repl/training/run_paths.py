"""Where a run is kept on its way: beside its checkpoint, or, while no file is named, at a place
of this visit's own.
"""

import os
from functools import cache
from pathlib import Path

from platformdirs import user_state_path

from minillm_repl.storage.atomic import try_lock
from minillm_repl.storage.paths import SUFFIX

_MAX_SESSIONS = 100  # visits at once


def resume_path(path: Path) -> Path:
    """Return where the resume file of a checkpoint lies: beside it."""
    return path.with_name(path.name.removesuffix(SUFFIX) + ".resume" + SUFFIX)


def unsaved_path() -> Path:
    """Return where training is saved on its way while no file has been named for the model.

    It is where the run lies that was stopped last, unless a visit that goes on meanwhile is at it.
    """
    return _claim_path(user_state_path("minillm-repl"))


@cache
def _claim_path(folder: Path) -> Path:
    """Return a place in a folder that no other visit has; this one has it until it ends."""
    names = ("unsaved", *(f"unsaved-{number}" for number in range(2, _MAX_SESSIONS)))
    places = sorted((folder / f"{name}{SUFFIX}" for name in names), key=_saved_at, reverse=True)
    return next(filter(_try_lock, places), places[0])


def _saved_at(path: Path) -> float:
    """Return when the run at a place stopped, 0 for none; places without one keep their order."""
    try:
        return resume_path(path).stat().st_mtime
    except OSError:
        return 0.0


def _try_lock(path: Path) -> bool:
    """Take a place for the rest of this process, unless another one has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        os.close(os.open(lock, os.O_RDONLY | os.O_CREAT, 0o600))
    except OSError:
        return False  # then nothing is kept there, and one place is as good as another
    return try_lock(lock, wait=False) is not None
