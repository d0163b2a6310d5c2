"""The folder of runs: what was trained on this machine, a small file a run, for `:runs`."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from minillm_repl.checkpoint.record import TrainingRecord, record_from_json
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.storage.atomic import make_parent_folder, write_atomically
from minillm_repl.storage.files import open_regular, parse_json

_MAX_RUNS = 1_000  # files; the oldest go first
_MAX_BYTES = 1 << 20  # of a file; a curve of 200 points takes 4 KB
_ATTEMPTS = 20  # to take a number that another session does not take at the same moment


@dataclass(frozen=True)
class PastRun:
    """A run that has ended: what it was, and where its model was saved."""

    number: int
    day: str  # `2026-11-30 09:12`, in the user's time zone
    path: str  # of the model; empty if it was not saved
    record: TrainingRecord

    @property
    def loss(self) -> float:
        """The validation loss, or the training loss without one; nats per token."""
        return self.record.train_loss if self.record.val_loss is None else self.record.val_loss


def runs_folder() -> Path:
    """Return the folder of the runs."""
    return user_state_path("minillm-repl") / "runs"


def add_run(record: TrainingRecord, path: str = "") -> int | None:
    """Write a run into the folder, and return its number; None where the system refuses.

    A model is worth more than its line here, so nothing else depends on it.
    """
    data = {"day": time.strftime("%Y-%m-%d %H:%M"), "path": path}
    text = json.dumps({**data, "record": dataclasses.asdict(record)}, ensure_ascii=False)
    numbers = sorted(_numbers())
    try:
        for number in range(max(numbers, default=0) + 1, max(numbers, default=0) + _ATTEMPTS):
            file = _file(number)
            if not file.exists():
                make_parent_folder(file)
                # private, because it tells what somebody works on
                write_atomically(file, text.encode("utf-8", "replace"), private=True)
                for old in numbers[: max(0, len(numbers) + 1 - _MAX_RUNS)]:
                    _file(old).unlink(missing_ok=True)
                return number
    except (UserError, OSError):
        pass
    return None


def past_runs() -> list[PastRun]:
    """Return the runs that can be read, the newest last."""
    found = []
    for number in sorted(_numbers()):
        with suppress(UserError):
            found.append(find_run(number))
    return found


def find_run(number: int) -> PastRun:
    """Return a run by its number. Raises UserError if there is none, or its file is damaged."""
    file = _file(number)
    if not file.exists():
        raise UserError(_("no run {number}; `:runs` lists them", number=number))
    with open_regular(file) as opened:
        data: Any = parse_json(opened.read(_MAX_BYTES), file.name)
    match data:
        case {"day": str(day), "path": str(path), "record": dict(record)}:
            return PastRun(number, day, path, record_from_json(record, file.name))
    raise UserError(_("{name} is no file of a run", name=file.name))


def delete_run(number: int) -> None:
    """Remove a run from the folder; its model stays. Raises UserError if there is none."""
    find_run(number)
    _file(number).unlink(missing_ok=True)


def _numbers() -> Iterator[int]:
    with suppress(OSError):
        for file in runs_folder().glob("*.json"):
            if file.stem.isascii() and file.stem.isdigit():
                yield int(file.stem)


def _file(number: int) -> Path:
    return runs_folder() / f"{number:04}.json"
