"""The one place that saves a checkpoint, whatever its kind."""

from collections.abc import Callable
from pathlib import Path

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats import huggingface, native
from minillm_repl.storage.atomic import convert_os_errors


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    folder: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Checkpoint:
    """Write a native file, or with `folder` or over one an HF folder; return what is there.

    Raises UserError, with what was there before as it was, also when interrupted.
    """
    with convert_os_errors(path):
        if folder or path.is_dir():
            return huggingface.save(checkpoint, path, interrupted)
        return native.save(checkpoint, path, interrupted)
