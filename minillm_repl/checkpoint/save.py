"""Saving of a checkpoint in any format."""

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
    """Write a native file, or a Hugging Face folder with `folder` or if `path` is one.

    Return the checkpoint with its new path. Raises UserError, also when `interrupted` returns
    True; the earlier file is unchanged then.
    """
    with convert_os_errors(path):
        if folder or path.is_dir():
            return huggingface.save_folder(checkpoint, path, interrupted)
        return native.save_native(checkpoint, path, interrupted)
