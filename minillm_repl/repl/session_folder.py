"""The folder of the user's sessions: their names, their list, and the model that each needs."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.session_tree import Model
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.journal import Journal
from minillm_repl.storage.paths import exists

if TYPE_CHECKING:
    from minillm_repl.repl.model_loading import LoadedModel

_SUFFIX = ".jsonl"
_MAX_NAME = 100  # bytes of a name, which is that of a file
_NAME = re.compile(r"[^\W_][\w .+-]*")
_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16  # of the digest of a model: up to 16 MiB are read
_TURN = b'{"event": "turn"'
_MAX_HEAD = 1 << 16  # bytes that the list reads of a file for its first words


@dataclass(frozen=True)
class Listed:
    """A session in the list."""

    name: str
    path: Path
    changed: float  # seconds since 1970
    turns: int
    first: str  # what was typed first


class SessionFolder:
    """A folder with one file for each session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the file of a session, which need not exist. Raises UserError for a bad name."""
        name = name.strip()
        is_short = len(name.encode("utf-8", "replace")) <= _MAX_NAME
        if not _NAME.fullmatch(name) or not is_short or name != safe_line(name):
            raise UserError(
                _(
                    "{name} is no name for a session: use letters, digits, spaces and - + _ .",
                    name=safe_line(name[:40]) or "''",
                )
            )
        return self.folder / (name + _SUFFIX)

    def paths(self) -> list[Path]:
        """Return the files of all sessions, the one that was changed last first."""
        found = list[tuple[float, Path]]()
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix == _SUFFIX and not path.name.startswith("."):
                    with suppress(OSError):
                        found.append((path.stat().st_mtime, path))
        return [path for _time, path in sorted(found, reverse=True)]

    def listed(self) -> Iterator[Listed]:
        """Yield all sessions, the newest first. A file that cannot be read has no turns."""
        for path in self.paths():
            data = b""
            with suppress(UserError, OSError), open_regular(path) as file:
                data = file.read(32 << 20)
            with suppress(OSError):
                changed = path.stat().st_mtime
                first = _first_words(data[:_MAX_HEAD])
                yield Listed(path.stem, path, changed, data.count(_TURN), first)

    def find(self, name: str) -> Path:
        """Return the file of a session by its name. Raises UserError if there is none."""
        path = self.path(name)
        if not exists(path):
            raise UserError(
                _("no session {name}: `:session list` shows all", name=safe_line(name.strip()))
            )
        return path

    def create(self, name: str = "") -> Journal:
        """Make the file of a new session. Raises UserError if that fails, or if it exists."""
        if name:
            path = self.path(name)
            if exists(path):
                raise UserError(_("a session {name} exists", name=safe_line(name)))
            return Journal(path)
        stem = time.strftime("%Y-%m-%d %H%M%S")
        names = (stem, *(f"{stem} {number}" for number in range(2, 100)))
        for path in map(self.path, names):
            if not exists(path):
                with suppress(UserError):  # another window was a moment faster
                    return Journal(path)
        return Journal(self.path(stem))

    def rename(self, journal: Journal, name: str) -> None:
        """Give a session another name. Raises UserError if another session has it."""
        target = self.path(name)
        if exists(target):
            raise UserError(_("a session {name} exists", name=safe_line(name)))
        try:
            journal.path.rename(target)
        except OSError as error:
            raise UserError(str(error)) from None
        journal.path = target

    def delete(self, name: str) -> None:
        """Delete a session. Raises UserError if there is none, or if it is open."""
        path = self.find(name)
        journal = Journal(path)  # nobody else may have it open
        try:
            path.unlink()
        except OSError as error:
            raise UserError(str(error)) from None
        finally:
            journal.close()


def _first_words(head: bytes) -> str:
    import json

    for line in head.split(b"\n")[:-1]:
        if line.startswith(_TURN):
            with suppress(ValueError, KeyError, RecursionError):
                return safe_line(str(json.loads(line)["prompt"])[:80])
    return ""


# -- the model of a session


def describe_model(model: "LoadedModel") -> Model:
    """Return what a session remembers of a model: its name, its files and a digest of them."""
    if model.server is not None:
        return Model(name=model.name, path=model.server.source)
    path = model.checkpoint.path
    if path is None:
        return Model(name=model.name)
    size, digest = digest_of(path)
    absolute = os.path.abspath(path)  # noqa: PTH100 - a link stays the name that the user knows
    return Model(name=model.name, path=absolute, size=size, sha256=digest)


def digest_of(path: Path) -> tuple[int, str]:
    """Return the bytes of a model's files, and a digest of samples of them; (0, "") without any.

    All of a file up to 16 MiB is read, and as much of a larger one, evenly spread.
    """
    files = [path]
    with suppress(OSError):
        if path.is_dir():
            endings = (".safetensors", ".gguf", ".json", ".jinja")
            files = sorted(each for each in path.iterdir() if each.name.endswith(endings))
    digest, total = hashlib.sha256(), 0
    try:
        for each in files:
            with open_regular(each) as file:
                size = os.fstat(file.fileno()).st_size
                title = each.name if len(files) > 1 else ""  # a file may be renamed
                head = f"{title} {size}\n".encode("utf-8", "replace")
                digest.update(head)
                step = max(_SAMPLE_BYTES, size // _SAMPLES)
                for start in range(0, size, step):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE_BYTES))
                total += size
    except (OSError, UserError):
        return 0, ""
    return total, digest.hexdigest() if total else ""


def saved_model_path(model: Model | None) -> Path | None:
    """Return the file of a session's model if it is there; None for one in no file."""
    if model is None or not model.sha256:
        return None
    path = Path(model.path)
    return path if path.is_absolute() and exists(path) else None


def model_warning(model: "LoadedModel", wanted: Model | None) -> str:
    """Return what to say if the open model is not that of a session; empty if it is."""
    now = describe_model(model)
    if wanted is None or now == wanted or (now.sha256 and now.sha256 == wanted.sha256):
        return ""
    name, size = safe_line(wanted.name[:80]), f"{wanted.size / 2**20:,.1f} MiB"
    where = safe_line(wanted.path[:200])
    if now.sha256 and now.path == wanted.path:
        return _(
            "{name} has changed since ({size} then, another content now): answers may differ",
            name=name,
            size=size,
        )
    if not wanted.path:
        return _("the model of this session, {name}, lies in no file", name=name)
    if not wanted.sha256:
        return _(
            "the model of this session, {name}, is on a server: {where}", name=name, where=where
        )
    if not exists(Path(wanted.path)):
        return _(
            "the model of this session is not there: {where} ({size}); {now} is open",
            where=where,
            size=size,
            now=safe_line(now.name),
        )
    return _(
        "the model of this session is another one: {where} ({size}); {now} is open",
        where=where,
        size=size,
        now=safe_line(now.name),
    )
