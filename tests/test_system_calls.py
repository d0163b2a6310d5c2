"""A save under strace: killed, or refused, at every system call that it really makes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.disk import Disk
from tests.faults import KINDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

# not refused here: that is another error
MEMORY = {"mmap", "munmap", "mremap", "brk", "mprotect", "madvise"}


class Saves:
    """Saves, each in a process of its own, that strace watches or strikes."""

    def __init__(self, kind, tmp_path):
        self._log = tmp_path / "log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults", "serve", kind],
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.folder = self._answer()["folder"]

    def _answer(self):
        return json.loads(self._process.stdout.readline())

    def save(self, *inject):
        """Return how a save ended; its calls are in `calls`."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        child = self._answer()["child"]
        strace = subprocess.Popen(
            [
                "strace",
                "-y",
                "-s0",
                "-o",
                self._log,
                "-p",
                str(child),
                "-e",
                "trace=%file,%desc",
                *inject,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        if "attached" not in (told := strace.stderr.readline()):
            os.kill(child, signal.SIGKILL)
            pytest.skip(f"strace may not watch here: {told}")
        os.kill(child, signal.SIGUSR1)
        answer = self._answer()
        strace.communicate()
        self.calls = [
            line for line in self._log.read_text().splitlines() if re.match(r"\w+\(", line)
        ]
        return answer

    def points(self):
        """Yield every call of a save: its name, and the how manieth of that name it is."""
        assert self.save()["new"]
        counts = Counter()
        for call in self.calls:
            name = call.partition("(")[0]
            counts[name] += 1
            yield name, counts[name]

    def close(self):
        self._process.communicate("")
        shutil.rmtree(self.folder)


@pytest.fixture(params=KINDS)
def saves(request, tmp_path):
    saves = Saves(request.param, tmp_path)
    yield saves
    saves.close()


def test_killed_at_every_system_call_nothing_is_lost(saves):
    points = list(saves.points())
    for name, number in points:
        ended = saves.save("-e", f"inject={name}:signal=KILL:when={number}")
        assert ended["code"] == -signal.SIGKILL
        assert ended["old"] or ended["new"], (name, number)
        assert ended["lost"] == [], (name, number)
    print(f"{len(points)} system calls, killed at each")
    assert len(points) > 25


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_refused_at_every_system_call_the_old_is_whole_and_there_is_no_litter(saves, error):
    points = [point for point in saves.points() if point[0] not in MEMORY]
    refused = 0
    for name, number in points:
        ended = saves.save("-e", f"inject={name}:error={error}:when={number}")
        assert ended["code"] in (0, 3), (name, number)
        assert ended["new"] if ended["code"] == 0 else ended["old"], (name, number)
        assert ended["litter"] == [] or "unlink" in name or name == "rmdir", (name, number)
        assert ended["lost"] == [], (name, number)
        refused += ended["code"] == 3
    print(f"{len(points)} system calls, {error} at each: {refused} saves refused")
    assert refused > 5


def test_a_crash_that_loses_what_was_not_synced_loses_nothing(saves, request):
    kind = request.node.callspec.params["saves"]
    assert saves.save()["new"]
    inside = {"link": "/deep", "folder again": "/model"}.get(kind, "")
    name = {"new folder": "model", "link": "real.safetensors"}.get(kind, "model.safetensors")
    files = () if kind.startswith("new") else (name,)
    disk, states = Disk(saves.folder + inside, files), 0
    for call in saves.calls:
        disk.call(call)
        for state in disk.root.states():
            states += 1
            there = state.get(name, "nothing" if kind.startswith("new") else "lost")
            if kind == "new folder":
                assert there == "nothing" or (len(there) == 5 and set(there.values()) == {"new"}), (
                    call
                )
            else:
                assert there in ("nothing", "old", "new"), call
    print(f"{len(saves.calls)} system calls, {states} states that a crash can leave")
    assert states > len(saves.calls)
    for state in disk.root.states():  # once the save has said that it is done, it lasts
        assert state[name] == "new" or set(state[name].values()) == {"new"}
