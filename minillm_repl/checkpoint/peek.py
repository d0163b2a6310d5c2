"""The config of a checkpoint, read without its weights.

This module imports no numpy, so that the first prompt appears at once.
"""

import os
from pathlib import Path

from minillm_repl.checkpoint.formats.folder import find_folder
from minillm_repl.checkpoint.formats.header import is_native, parse_config, read_header
from minillm_repl.errors import UserError
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line


def read_config(path: Path) -> AnyConfig | None:
    """Return the config of a native checkpoint or a Hugging Face folder; None for a state dict.

    Raises UserError if the path has no checkpoint.
    """
    folder = find_folder(path)
    if folder is not None and folder.weight_file is None:
        return folder.config
    header = read_header(path)
    if is_native(header):
        return parse_config(header, safe_line(str(path)))
    return folder.config if folder is not None else None


def is_in_folder(path: Path) -> bool:
    """Tell whether a path is a Hugging Face folder or a file in one; it is not replaced."""
    folder = find_folder(path)
    if folder is None or not os.path.lexists(path):
        return False
    if folder.weight_file is None:
        return True
    try:
        return not is_native(read_header(path))
    except UserError:
        return False
