"""The checkpoints opened last, kept in a file of the user's."""

import os
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.paths import exists, is_shipped

_MAX_PATHS = 20


class RecentModels:
    """Paths, the last one first; without a file, nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def paths(self) -> list[Path]:
        """Return those that are still there."""
        if self._file is None or not self._file.is_file():
            return []
        try:
            lines = os.fsdecode(self._file.read_bytes()).split("\n")[:_MAX_PATHS]
        except OSError:
            return []
        return [Path(line) for line in lines if line and exists(Path(line))]

    def add(self, path: Path | None) -> None:
        """Put a path first.

        A folder that cannot be written must not keep anyone from opening a model.
        """
        if self._file is None or path is None or is_shipped(path) or "\n" in str(path):
            return
        path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the user knows them
        lines = [str(each) for each in (path, *(other for other in self.paths() if other != path))][
            :_MAX_PATHS
        ]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self._file, os.fsencode("".join(f"{line}\n" for line in lines)), private=True
            )
        except (OSError, UserError):
            return
