"""A save that is killed, or refused by the system, at each of its calls in turn.

Run as a program, it answers with a line of JSON: it forks at each point, which a process with torch
in it should not.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.numpy

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.load_save import save
from minillm_repl.errors import UserError
from tests.small import random_checkpoint

SYSTEM = {"posix", "fcntl", "io", "_io"}  # where Python's calls of the system are


def _of_system(function: object) -> bool:
    owner = type(getattr(function, "__self__", None)).__module__
    known = getattr(function, "__module__", None) in SYSTEM or owner == "_io"
    # which only compute
    return known and function.__name__ not in ("fspath", "getpid", "WIFSIGNALED")


@contextmanager
def at_call(number: int, strike: Callable[[], None]) -> Iterator[list[str]]:
    """Strike before the system call of that number, from 0; give the names of those so far."""
    made: list[str] = []

    def watch(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and _of_system(function):
            made.append(function.__name__)
            if len(made) == number + 1:
                strike()

    sys.setprofile(watch)
    try:
        yield made
    finally:
        sys.setprofile(None)


class Scene:
    """A folder in which something is saved: what is there before, where the save goes, and what
    may be there after.
    """

    def __init__(self, kind: str, old: Checkpoint, new: Checkpoint) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self._kind, self._old, self._new = kind, old, new
        self.before, self.after = self.listing(save_new=False), self.listing(save_new=True)
        self.reset()

    def listing(self, *, save_new: bool) -> dict[str, bytes]:
        self.reset()
        if save_new:
            self.save()
        return self.seen()

    def reset(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        if self._kind != "new file" and self._kind != "new folder":
            save(self._old, self.folder / "model.safetensors")
        if self._kind == "link":
            (self.folder / "deep").mkdir()
            (self.folder / "model.safetensors").rename(self.folder / "deep" / "real.safetensors")
            (self.folder / "model.safetensors").symlink_to("deep/real.safetensors")
        if self._kind == "folder again":
            save(self._old, self.folder / "model", folder=True)

    def save(self) -> None:
        folder = "folder" in self._kind
        save(self._new, self.folder / ("model" if folder else "model.safetensors"), folder=folder)

    def seen(self) -> dict[str, bytes]:
        """Each file in the folder but unfinished ones, with its content; a link's is its target."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if ".minillm-" not in name and not path.is_dir():
                found[name] = str(path.readlink()).encode() if path.is_symlink() else content(path)
        return found

    def litter(self) -> list[str]:
        return [path.name for path in self.folder.rglob(".minillm-*")]

    def whole(self) -> bool:
        return self.seen() in (self.before, self.after)


def content(path: Path) -> bytes:
    """Return the bytes of a file; those of weights by their names, for the library's order is
    another each time.
    """
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    arrays = safetensors.numpy.load(data)
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return json.dumps(text, sort_keys=True).encode() + b"".join(
        arrays[name].tobytes() for name in sorted(arrays)
    )


def count(scene: Scene) -> int:
    with at_call(-1, lambda: None) as made:
        scene.save()
    scene.reset()
    return len(made)


def in_child(action: Callable[[], None]) -> int:
    """Do it in a process of its own; return how that ended."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_at_each_call(scene: Scene) -> dict:
    lost, killed, calls = [], 0, count(scene)
    for number in range(calls):

        def dies(number: int = number) -> None:
            with at_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                scene.save()

        killed += os.WIFSIGNALED(in_child(dies))
        lost += _checked(scene, f"call {number}")
    return {"points": killed, "of": calls, "lost": lost}


def kill_at_each_size(scene: Scene, points: int = 40) -> dict:
    """Kill it in the middle of a write: the system does so where a file grows beyond the limit
    that was set.
    """
    lost, killed = [], 0
    largest = max(len(data) for data in scene.after.values())
    for point in range(points):
        size = largest * point // points

        def dies(size: int = size) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            scene.save()

        killed += os.WIFSIGNALED(in_child(dies))
        lost += _checked(scene, f"byte {size}")
    return {"points": killed, "of": points, "lost": lost}


def _checked(scene: Scene, where: str) -> list[str]:
    wrong = [] if scene.whole() else [f"{where}: {sorted(scene.seen())}"]
    scene.save()  # the next save cleans up after the killed one
    if scene.seen() != scene.after or scene.litter():
        wrong.append(f"{where}: then {sorted(scene.seen())} {scene.litter()}")
    scene.reset()
    return wrong


def fail_at_each_call(scene: Scene, error: int) -> dict:
    """Refuse each call in turn: the old is whole, there is one line and no litter, or else the
    new is there.
    """
    wrong, refused, calls = [], 0, count(scene)
    for number in range(calls):

        def strike() -> None:
            raise OSError(error, os.strerror(error))

        with at_call(number, strike) as made:
            try:
                scene.save()
                right = scene.seen() == scene.after
            except UserError as told:
                refused += 1
                # "not there" is as good
                why = os.strerror(error) in str(told) or made[number] in ("stat", "lstat")
                right = scene.seen() == scene.before and str(told).isprintable() and why
        if not right or scene.litter():
            wrong.append(f"{number} ({made[number]}): {sorted(scene.seen())} {scene.litter()}")
        scene.reset()
    return {"points": calls, "refused": refused, "lost": wrong}


def serve(scene: Scene) -> None:
    """For each line on stdin, start a save that waits for SIGUSR1, say its number and its end."""
    # it may come before it is waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    print(json.dumps({"folder": str(scene.folder)}), flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.sigwait({signal.SIGUSR1})
            signal.alarm(20)  # whatever happens, it ends
            try:
                scene.save()
            except UserError:
                os._exit(3)
            os._exit(0)
        print(json.dumps({"child": child}), flush=True)
        status = os.waitpid(child, 0)[1]
        seen, litter = scene.seen(), scene.litter()
        print(
            json.dumps(
                {
                    "code": os.waitstatus_to_exitcode(status),
                    "old": seen == scene.before,
                    "new": seen == scene.after,
                    "litter": litter,
                    "lost": _checked(scene, "then"),
                }
            ),
            flush=True,
        )


KINDS = ("new file", "old file", "link", "new folder", "folder again")


def scene_of(kind: str) -> Scene:
    return Scene(kind, random_checkpoint(seed=0), random_checkpoint(seed=1))


def main() -> None:
    """Do what the words say."""
    how, kind, *number = sys.argv[1:]
    scene = scene_of(kind)
    if how == "serve":
        serve(scene)
        return
    what = {"call": kill_at_each_call, "size": kill_at_each_size, "error": fail_at_each_call}[how]
    print(json.dumps(what(scene, *map(int, number))))
    shutil.rmtree(scene.folder)


if __name__ == "__main__":
    main()
