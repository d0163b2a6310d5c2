"""The config of a checkpoint, read without its weights.

This module imports no numpy, so that the first prompt appears at once.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minillm_repl.checkpoint.families.find import family_title
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


@dataclass(frozen=True)
class Summary:
    """What a checkpoint is, told by its config and the headers of its files."""

    family: str  # `Llama`
    parameters: int
    dtype: str  # that most weights are stored in: `BF16`
    size: int  # bytes of the files
    modified: float  # seconds since 1970


def summarise(path: Path) -> Summary | None:
    """Return what a checkpoint is; None if it cannot be opened."""
    try:
        config = read_config(path)
        if config is None:
            return None
        folder = find_folder(path)
        is_file = folder is None or folder.weight_file is not None
        files = [path] if is_file else sorted(path.glob("*.safetensors"))
        headers = [read_header(file) for file in files]
        stats = [file.stat() for file in files]
    except (UserError, OSError):
        return None
    sizes = Counter[str]()  # bytes by dtype
    for header in headers:
        for tensor in header.tensors.values():
            sizes[tensor.dtype] += tensor.nbytes
    return Summary(
        family=family_title(config, native=all(map(is_native, headers))),
        parameters=config.n_params,
        dtype=", ".join(dtype for dtype, _bytes in sizes.most_common(1)),
        size=sum(each.st_size for each in stats),
        modified=max((each.st_mtime for each in stats), default=0.0),
    )


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
