"""The program as its users meet it: a command, by itself or on a pseudo-terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pexpect  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "models" / "nalssi.txt"

_CURSOR_ASKED, _CURSOR_TOLD = b"\x1b[6n", b"\x1b[3;1R"


def command(*arguments: str) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "minillm_repl", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which no setting, file or history of the user counts."""
    personal = ("MINILLM_", "NO_COLOR", "COLUMNS", "LINES", "PROMPT_TOOLKIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(personal)}
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color",
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }


# By way of a small process: what a process takes at most is counted from the size of the one that
# started it.
_PEAK = """
import resource, subprocess, sys
nothing = subprocess.DEVNULL
subprocess.run(sys.argv[1:], check=True, stdin=nothing, stdout=nothing, stderr=nothing)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def peak(folder: Path, *arguments: str) -> float:
    """Run a command once more, and return the most memory that it took at once, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *arguments],
        check=True,
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
    )
    return float(done.stdout)


def json_finished(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the program with --json and return its last event.

    The events go to a file and not to /dev/null, for the last one is wanted; it lies in memory
    until long after.
    """
    path = folder / "events.json"
    with path.open("wb") as output:
        subprocess.run(
            command(*arguments, "--json"),
            check=True,
            cwd=ROOT,
            env=environment(folder),
            stdout=output,
        )
    finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return finished


class Terminal:
    """The program on a pseudo-terminal of 24 × 80, which tells where its cursor is."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        start, *rest = command(*arguments)
        self._child = pexpect.spawn(
            start, rest, cwd=str(ROOT), env=environment(folder), dimensions=(24, 80), timeout=120
        )
        self._child.delaybeforesend = None  # pexpect waits 50 ms before each key unless told not to
        self._unread = b""
        self._asked = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.close(force=True)

    def type(self, keys: str) -> None:
        """Send keys."""
        self._child.send(keys)

    def wait_for(self, text: str) -> None:
        """Read until `text` has been written.

        Raises pexpect.TIMEOUT after two minutes, pexpect.EOF at the end.
        """
        wanted = text.encode()
        while wanted not in self._unread:
            self._read()
        self._unread = self._unread.partition(wanted)[2]

    def rest(self) -> str:
        """Return what is written until the program ends."""
        try:
            while True:
                self._read()
        except pexpect.EOF:
            return self._unread.decode("utf-8", "replace")

    def _read(self) -> None:
        piece: bytes = self._child.read_nonblocking(65_536, timeout=120)
        self._unread += piece
        self._asked += piece
        while _CURSOR_ASKED in self._asked:
            self._child.send(_CURSOR_TOLD)
            self._asked = self._asked.partition(_CURSOR_ASKED)[2]
        self._asked = self._asked[1 - len(_CURSOR_ASKED) :]  # the question may come in two pieces
