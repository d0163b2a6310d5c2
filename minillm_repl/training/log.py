"""`log=csv|tensorboard|trackio`: the numbers of a run for other programs, while it goes on."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol

from minillm_repl.errors import os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training import Evaluated, TrainEvent, TrainStep

_COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "seconds", "train_loss", "val_loss")


class Writer(Protocol):
    """Where numbers go."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write what is known after a step. Raises OSError."""

    def close(self) -> None:
        """Write what is left, and let go. Raises OSError."""


class CsvWriter:
    """A table with a row for each step and each measurement; a run that goes on continues it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", newline="", buffering=1, encoding="ascii")  # a row at a time
        self._rows = csv.DictWriter(self._file, _COLUMNS)
        if not self._file.tell():
            self._rows.writeheader()

    def write(self, numbers: Mapping[str, float], step: int) -> None:  # noqa: D102
        self._rows.writerow({"step": step, **numbers})

    def close(self) -> None:  # noqa: D102
        self._file.close()


class TensorBoardWriter:
    """A folder that `tensorboard --logdir` shows, a curve for each number."""

    def __init__(self, path: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self._writer = SummaryWriter(str(path))

    def write(self, numbers: Mapping[str, float], step: int) -> None:  # noqa: D102
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:  # noqa: D102
        self._writer.close()


class TrackioWriter:
    """A run of the project `minillm-repl` that `trackio show` shows."""

    def __init__(self, path: Path) -> None:
        self._trackio = import_module("trackio")
        with _silence():
            self._run = self._trackio.init(
                project="minillm-repl",
                name=path.stem,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def write(self, numbers: Mapping[str, float], step: int) -> None:  # noqa: D102
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:  # noqa: D102
        with _silence():
            self._trackio.finish()


def logged(
    events: Iterator[TrainEvent], kind: str, checkpoint: Path, warn: Callable[[str], object]
) -> Iterator[TrainEvent]:
    """Yield the events of a run, and write the numbers of its steps and measurements beside its
    checkpoint; a number that an event does not tell is left out.

    `warn` is told once where the system refuses: a full disk ends the log, not the run.
    """
    path = checkpoint.with_suffix("." + kind)
    writer = _open(kind, path, warn)
    try:
        for event in events:
            if writer and isinstance(event, TrainStep | Evaluated):
                try:
                    writer.write(_numbers(event), event.step)
                except OSError as error:
                    warn(_refused(path, error))
                    writer = None
            yield event
    finally:
        if writer:
            with suppress(OSError):
                writer.close()


def _open(kind: str, path: Path, warn: Callable[[str], object]) -> Writer | None:
    kinds: dict[str, Callable[[Path], Writer]] = {
        "csv": CsvWriter,
        "tensorboard": TensorBoardWriter,
        "trackio": TrackioWriter,
    }
    try:
        return kinds[kind](path)
    except OSError as error:
        warn(_refused(path, error))
        return None


def _numbers(event: TrainStep | Evaluated) -> dict[str, float]:
    told = {name: getattr(event, name, None) for name in _COLUMNS[1:]}
    return {name: number for name, number in told.items() if number is not None}


def _silence() -> redirect_stdout[io.StringIO]:
    """Keep a library's own lines from the screen."""
    return redirect_stdout(io.StringIO())


def _refused(path: Path, error: OSError) -> str:
    return _(
        "cannot write {path}: {error}; training goes on without it",
        path=safe_line(str(path)),
        error=os_error_text(error),
    )
