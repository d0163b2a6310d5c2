"""`log=csv`: the numbers of a run as a table for other programs, a row for each event."""

import csv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from minillm_repl.errors import os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training import Evaluated, TrainEvent, TrainStep

_COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "seconds", "train_loss", "val_loss")


def logged(
    events: Iterator[TrainEvent], path: Path, warn: Callable[[str], object]
) -> Iterator[TrainEvent]:
    """Yield the events of a run, and write a row for each step and each measurement; what an
    event does not say is empty.

    A run that goes on continues its table. `warn` is told once where the system refuses.
    """
    file = None
    try:
        file = path.open("a", newline="", buffering=1, encoding="ascii")  # a row at a time
        rows = csv.DictWriter(file, _COLUMNS)
        if not file.tell():
            rows.writeheader()
    except OSError as error:
        warn(_refused(path, error))
    for event in events:
        if file and isinstance(event, TrainStep | Evaluated):
            try:
                rows.writerow({name: getattr(event, name, None) for name in _COLUMNS})
            except OSError as error:  # A full disk ends the table, not the run.
                warn(_refused(path, error))
                file = None
        yield event
    if file:
        with suppress(OSError):
            file.close()


def _refused(path: Path, error: OSError) -> str:
    return _(
        "cannot write {path}: {error}; training goes on without it",
        path=safe_line(str(path)),
        error=os_error_text(error),
    )
