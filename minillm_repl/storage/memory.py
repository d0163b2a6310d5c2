"""How much memory there is, asked before much of it is taken: a file's header is only a claim."""

from contextlib import suppress
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _

# inside a container, its own limits lie here: version 2, then version 1
_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    (_GROUP / "memory.max", _GROUP / "memory.current", _GROUP / "memory.stat"),
    *((group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", group / "memory.stat")
      for group in [_GROUP / "memory"]),
)  # fmt: skip


def available() -> int | None:
    """Return how many bytes a program may take before the system must take some from others;
    None if unknown.
    """
    known = []
    with suppress(OSError, ValueError, KeyError):
        known.append(_fields("/proc/meminfo")["MemAvailable:"] * 1024)
    for limit, usage, statistics in _LIMITS:
        with suppress(OSError, ValueError, KeyError):  # `max` is no number, and no limit
            # what has been read from disks is given up at once
            cached = _fields(statistics).get("inactive_file", 0)
            known.append(max(0, int(limit.read_text()) - int(usage.read_text()) + cached))
    return min(known, default=None)


def check_room(needed: int, what: str) -> None:
    """Raise UserError, naming `what`, if so many bytes are more than there are."""
    there = available()
    if there is not None and needed > there:
        raise UserError(
            _(
                "{what} needs {needed} of memory, and {there} are free; nothing was done",
                what=what,
                needed=_size(needed),
                there=_size(there),
            )
        )


def _fields(path: str | Path) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
