"""How much memory there is, asked before much of it is taken: a file's header is only a claim."""

from contextlib import suppress
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _

# inside a container, its own limits lie here: version 2, then version 1
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat"),
    *((group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", group / "memory.stat")
      for group in [_CGROUP / "memory"]),
)  # fmt: skip


def available_bytes() -> int | None:
    """Return how many bytes a program may take before the system must take some from others;
    None if unknown.
    """
    known = []
    with suppress(OSError, ValueError, KeyError):
        known.append(_read_fields("/proc/meminfo")["MemAvailable:"] * 1024)
    for limit, usage, statistics in _LIMITS:
        with suppress(OSError, ValueError, KeyError):  # `max` is no number, and no limit
            # what has been read from disks is given up at once
            cached = _read_fields(statistics).get("inactive_file", 0)
            known.append(max(0, int(limit.read_text()) - int(usage.read_text()) + cached))
    return min(known, default=None)


def check_memory(needed: int, what: str) -> None:
    """Raise UserError, naming `what`, if so many bytes are more than there are."""
    free_bytes = available_bytes()
    if free_bytes is not None and needed > free_bytes:
        raise UserError(
            _(
                "{what} needs {needed} of memory, but {there} is free; nothing was changed",
                what=what,
                needed=_format_bytes(needed),
                there=_format_bytes(free_bytes),
            )
        )


def _read_fields(path: str | Path) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
