"""Free memory, checked before a large allocation: the sizes in a file's header are only a claim."""

from contextlib import suppress
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _

# The limits of a container: limit, usage and statistics of cgroup version 2, then of version 1.
_CGROUP_2 = Path("/sys/fs/cgroup")
_CGROUP_1 = _CGROUP_2 / "memory"
_LIMITS = (
    (_CGROUP_2 / "memory.max", _CGROUP_2 / "memory.current", _CGROUP_2 / "memory.stat"),
    (
        _CGROUP_1 / "memory.limit_in_bytes",
        _CGROUP_1 / "memory.usage_in_bytes",
        _CGROUP_1 / "memory.stat",
    ),
)


def available_bytes() -> int | None:
    """Return how many bytes a program can allocate without swapping; None if unknown."""
    known = []
    with suppress(OSError, ValueError, KeyError):
        known.append(_read_fields("/proc/meminfo")["MemAvailable:"] * 1024)
    for limit, usage, statistics in _LIMITS:
        with suppress(OSError, ValueError, KeyError):  # `max` is not a number: no limit
            # The kernel frees cached files at once.
            cached = _read_fields(statistics).get("inactive_file", 0)
            known.append(max(0, int(limit.read_text()) - int(usage.read_text()) + cached))
    return min(known, default=None)


def check_memory(needed: int, what: str) -> None:
    """Raise UserError, naming `what`, if fewer than `needed` bytes are free."""
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
