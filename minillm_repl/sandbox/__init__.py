"""Jobs on untrusted data, done in a second process (worker.py) that has limits."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line

WORKER = Path(__file__).with_name("worker.py")
_OUT_OF_MEMORY = N_("it used too much memory")  # the worker's own message
_TIMEOUT_SECONDS = 10  # the start of the process included; the work takes milliseconds
_MAX_ENTRIES = 100  # digests in the cache of tried descriptions


def run_sandboxed(job: str, what: str, **request: Any) -> Any:
    """Do a job: `template` renders a chat template, `tokenizer` tries a description,
    `grammar` tries a format of answers.

    Raises UserError naming `what` if the job fails, or takes too much time or memory.
    """
    # -P: nothing is imported from the user's current folder.
    command = [sys.executable, "-P", str(WORKER), job]
    try:
        completed = subprocess.run(  # noqa: S603 - our own file
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            process_group=0,  # a group of its own, so that Ctrl-C does not reach it
        )
        answer = json.loads(completed.stdout)
    except subprocess.TimeoutExpired:
        raise UserError(
            _("{what} took more than {seconds} seconds", what=what, seconds=_TIMEOUT_SECONDS)
        ) from None
    except ValueError:  # the process was killed before it could answer
        raise UserError(
            _(
                "{what}: the library that reads it crashed, or used too much memory or time",
                what=what,
            )
        ) from None
    if "error" in answer:
        error = safe_line(answer["error"])
        if error == _OUT_OF_MEMORY:
            error = _(_OUT_OF_MEMORY)
        raise UserError(_("{what} cannot be used: {error:.200}", what=what, error=error))
    return answer["answer"]


def largest_token_id(description: str) -> int:
    """Return the largest id that a tokenizer gives when its description (JSON text) is tried.

    The user's cache folder remembers successful trials by a digest of the description, the
    library's version and the worker's code. Raises UserError as `run_sandboxed` does.
    """
    import tokenizers  # not needed for a chat template

    parts = description.encode(), tokenizers.__version__.encode(), WORKER.read_bytes()
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
    except (OSError, ValueError):  # no cache yet, or a damaged one
        return {}


def _write_cache(path: Path, cache: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    lines = (f"{digest} {largest}\n" for digest, largest in cache.items())
    unfinished.write_text("".join(lines), encoding="ascii")
    unfinished.replace(path)
