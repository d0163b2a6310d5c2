"""A disk that may lose what was not synced: which states a crash can leave, given the system
calls until then.
"""

import re
from collections.abc import Iterator
from itertools import product

_CALL = re.compile(r"(?P<name>\w+)\((?P<words>.*)\)\s+= (?P<answer>-?\w+)")
_PATHS = re.compile(r'"([^"]*)"')
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
TORN = "torn"


class Node:
    """A file, whose data lasts once it is synced; or a folder, each change of which may last or
    not until it is.
    """

    def __init__(self, folder: bool = False, data: str = "") -> None:
        self.folder, self.data, self.synced = folder, data, not folder
        self.entries: dict[str, Node] = {}
        self.lasting: dict[str, Node] = {}
        self.pending: list[tuple[str, Node | None]] = []

    def put(self, name: str, node: "Node | None") -> None:
        self.pending.append((name, node))
        self.entries.pop(name, None)
        if node:
            self.entries[name] = node

    def sync(self) -> None:
        self.synced, self.lasting = True, dict(self.entries)
        self.pending.clear()

    def states(self) -> Iterator[object]:
        """Yield everything that may be here after a crash: a text, or names and what lies there."""
        if not self.folder:
            yield self.data if self.synced else TORN
            return
        for kept in product((False, True), repeat=len(self.pending)):
            there = dict(self.lasting)
            for (name, node), lasts in zip(self.pending, kept, strict=True):
                if lasts:
                    there.pop(name, None)
                    if node:
                        there[name] = node
            for inside in product(*(list(node.states()) for node in there.values())):
                yield dict(zip(there, inside, strict=True))


class Disk:
    """A folder at `path` with files in it, changed by the calls that strace (-y) wrote down."""

    def __init__(self, path: str, files: tuple[str, ...]) -> None:
        self._path, self.root = path, Node(folder=True)
        for name in files:
            self.root.put(name, Node(data="old"))
        self.root.sync()

    def _at(self, path: str) -> tuple[Node, str] | None:
        """Return the folder that a path lies in, and its name there; None for others."""
        if not path.startswith(self._path + "/"):
            return None
        *folders, name = path.removeprefix(self._path + "/").split("/")
        node = self.root
        for each in folders:
            node = node.entries[each]
        return node, name

    def _node(self, path: str) -> Node | None:
        if path == self._path:
            return self.root
        found = self._at(path)
        return found[0].entries.get(found[1]) if found else None

    def call(self, line: str) -> None:
        """Do what one call did, if it worked."""
        match = _CALL.match(line)
        if match is None or match["answer"].startswith("-"):
            return
        name, words = match["name"], match["words"]
        paths = [found for found in map(self._at, _PATHS.findall(words)) if found]
        descriptor = _DESCRIPTOR.match(words)
        node = self._node(descriptor[1]) if descriptor else None
        match name:
            case "openat" if "O_CREAT" in words and paths:
                folder, entry = paths[0]
                if entry not in folder.entries:
                    folder.put(entry, Node())
                if "O_TRUNC" in words:
                    folder.entries[entry].synced = False
            case "mkdir" if paths:
                paths[0][0].put(paths[0][1], Node(folder=True))
            case "write" | "pwrite64" | "writev" if node:
                node.data, node.synced = "new", False
            case "fsync" | "fdatasync" if node:
                node.sync()
            case "rename" | "renameat" | "renameat2":
                (before, old), (after, new) = paths
                moved = before.entries[old]
                before.put(old, None)
                after.put(new, moved)
            case "unlink" | "unlinkat" | "rmdir" if paths:
                paths[0][0].put(paths[0][1], None)
