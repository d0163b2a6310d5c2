"""Tokenizers' descriptions tried on this machine: a second trial would find the same."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import tokenizers
from platformdirs import user_cache_path

from minillm_repl.language import _
from minillm_repl.sandbox.ask import PROCESS, run_sandboxed

_MAX_ENTRIES = 100  # that are remembered


def largest_token_id(description: str) -> int:
    """Return the largest id that a tokenizer gives in a trial of its description (JSON) in a
    process of its own.

    That it went well, and the id, are remembered in the user's cache folder, by a digest of the
    description, the library's version and the trial. Raises UserError if it is refused, fails, or
    takes too much time or memory.
    """
    parts = description.encode(), tokenizers.__version__.encode(), PROCESS.read_bytes()
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    path = user_cache_path("minillm-repl") / "tried-tokenizers"
    cache = _read_cache(path)
    if digest not in cache:
        cache[digest] = run_sandboxed("tokenizer", _("its description"), description=description)
        with suppress(OSError):
            _write_cache(path, dict(list(cache.items())[-_MAX_ENTRIES:]))
    return cache[digest]


def _read_cache(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return {digest: int(largest) for digest, largest in map(str.split, lines)}
    except (OSError, ValueError):  # none yet, or what is no list of them
        return {}


def _write_cache(path: Path, cache: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(
        "".join(f"{digest} {largest}\n" for digest, largest in cache.items()), encoding="ascii"
    )
    unfinished.replace(path)
