"""The files that views write. A view replaces only a file that a view made, unless told to."""

import re
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.files import open_regular

_VIEW_HEADERS = re.compile(
    rb'\{"view": "'
    rb'|<svg class="terminal"[^>]*>\s*<!-- made by minillm-repl -->'
    rb"|<!DOCTYPE html>\s*<html>\s*<head>\s*<!-- made by minillm-repl -->"
    rb"|\[minillm-repl( \xc2\xb7 [^\n]*)?\]\r?\n"
)
"""How the files begin that views and `:export` write (render/export.py, render/json_lines.py)."""

_HEADER_BYTES = 1000  # bytes: enough for each of these


def check_overwritable(path: Path, *, overwrite: bool) -> None:
    """Raise UserError if the file at `path` was not made by a view, unless `overwrite`."""
    if overwrite or not path.is_file() or not path.stat().st_size:
        return
    with open_regular(path) as file:
        head = file.read(_HEADER_BYTES)
    if _VIEW_HEADERS.match(head):
        return
    raise UserError(
        _(
            "{path} exists and was not made by a view: `--overwrite` replaces it, or use "
            "another name",
            path=safe_line(str(path)),
        )
    )


def write_view(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a view to `path`. Raises UserError, also where `check_overwritable` does."""
    check_overwritable(path, overwrite=overwrite)
    write_atomically(path, data)
