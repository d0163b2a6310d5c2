"""Tokenizers' descriptions that have been tried on this machine: a second trial would find the
same.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import tokenizers
from platformdirs import user_cache_path

from minillm_repl.language import _
from minillm_repl.sandbox.ask import PROCESS, ask

_MOST = 100  # that are remembered


def largest_id(description: str) -> int:
    """Return the largest id that a tokenizer gives in a trial of its description (JSON) in a
    process of its own.

    That it went well, and the id, are remembered in the user's cache folder, by a digest of the
    description, the library's version and the trial. Raises UserError if it is refused, fails, or
    takes too much time or memory.
    """
    parts = description.encode(), tokenizers.__version__.encode(), PROCESS.read_bytes()
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    path = user_cache_path("minillm-repl") / "tried-tokenizers"
    tried = _read(path)
    if digest not in tried:
        tried[digest] = ask("tokenizer", _("its description"), description=description)
        with suppress(OSError):
            _write(path, dict(list(tried.items())[-_MOST:]))
    return tried[digest]


def _read(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return {digest: int(largest) for digest, largest in map(str.split, lines)}
    except (OSError, ValueError):  # none yet, or what is no list of them
        return {}


def _write(path: Path, tried: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(
        "".join(f"{digest} {largest}\n" for digest, largest in tried.items()), encoding="ascii"
    )
    unfinished.replace(path)
