"""Fuzzes readers of headers and commands' parser: `python -m tests.fuzz header|gguf|command`.

With atheris (the `fuzz` extra) coverage leads the way; without it, seeds are changed at random.
Either way whatever is fed in must be taken, or refused with a UserError of one clean line; anything
else ends the run with the input.
"""

import argparse
import io
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["minillm_repl"]) if atheris else io.BytesIO():
    from rich.console import Console

    from minillm_repl import commands, views
    from minillm_repl.checkpoint.gguf.header import parse_gguf_header
    from minillm_repl.checkpoint.header import is_native, parse_header
    from minillm_repl.checkpoint.native import parse_config
    from minillm_repl.commands.train import train
    from minillm_repl.errors import UserError
    from minillm_repl.render.console import Screen
    from minillm_repl.repl.registry import discover
    from minillm_repl.repl.session import Session
    from minillm_repl.repl.shell import ExitRequested, Shell
    from minillm_repl.repl.train_request import make_request
    from minillm_repl.repl.workspace import Workspace, Writable
    from minillm_repl.safetext import safe_line
    from tests.hostile_gguf import (
        BOOL,
        F32,
        F64,
        I8,
        I16,
        I32,
        I64,
        STRING,
        U8,
        U16,
        U32,
        U64,
        array,
        packed,
        scalar,
        text,
    )  # fmt: skip

ENTRY = (
    b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
    b'"__metadata__":{"format":"minillm","version":"1"}}'
)
CONFIG = (
    b'{"__metadata__":{"format":"minillm","version":"1","config":"{\\"arch\\": \\"gpt\\", '
    b'\\"vocab\\": 5,'
    b' \\"context\\": 8, \\"width\\": 8, \\"layers\\": 1, \\"heads\\": 2}"}}'
)
HEADERS = [
    struct.pack("<Q", len(text)) + text + bytes(size)
    for text, size in ((ENTRY, 24), (CONFIG, 0), (b"{}", 0))
]
LINES = [
    ":temp 0.5", ":set top-p 0.9", ":seed random", ":stop 'a b' \"c\"", ":verbose off",
    ":max-tokens auto", ":train a.txt steps=3 lr=0.1 new", ":train 'a b.txt' val=off", ":load x",
    ":save y/", "/help", "::a", ":undo", "가나", ":help temp",
    ":attn 1.2 text", ":lens 3", ":why a vs b", ":tokens \ud83d", ":continue  a", ":system off",
    ":chat on",
]  # fmt: skip


def clean(error: UserError) -> None:
    """Fail unless a message is one line in which nothing can steer a terminal."""
    told = str(error)
    if safe_line(told) != told or len(told) > 20_000:
        raise AssertionError(f"not a clean line: {told!r}")


def header(data: bytes) -> None:
    """Read the header of a file that holds these bytes."""
    try:
        found = parse_header(io.BytesIO(data), Path("fuzzed"))
        if is_native(found):
            parse_config(found, "fuzzed")
    except UserError as error:
        clean(error)


def gguf(data: bytes) -> None:
    """Read the header of a GGUF file that holds these bytes."""
    try:
        parse_gguf_header(io.BytesIO(data), Path("fuzzed"))
    except UserError as error:
        clean(error)


def gguf_seeds() -> list[bytes]:
    """Return small GGUF files with every kind of value, and none, one and several tensors."""
    pairs = {"general.architecture": scalar(STRING, "llama"), "general.alignment": scalar(U32, 8)}
    pairs |= {
        f"a.{kind}": scalar(kind, 1) + text(f"b.{kind}") + array(kind, [0, 1])
        for kind in (U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64)
    }
    pairs["c"] = array(STRING, ["가", "", "b"])
    arrays = {"x": np.zeros((2, 3), "<f4"), "y": np.zeros(4, "<f2"), "z": np.zeros(1, "<f4")}
    return [
        packed({}, {}),
        packed({"general.name": scalar(STRING, "x")}, {}),
        packed({}, {"x": arrays["x"]}),
        packed(pairs, arrays, n_keys=len(pairs) + 11, alignment=8),
    ]


class _Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


def commander() -> Callable[[bytes], None]:
    """Return what gives a line to a visit without a model, so that nothing is written."""
    console = Console(file=_Nowhere(), width=80, markup=False, highlight=False)
    registry = discover(commands, views)

    def command(data: bytes) -> None:
        line = data.decode("utf-8", "surrogateescape")
        if line.lstrip(":/ ").startswith(("load", "train")) and line.split()[1:2]:
            # there may be one that takes its time
            line = line.replace(line.split()[1], "no such file")
        empty = Workspace(destination=Writable(Path("none")))
        shell = Shell(
            session=Session(workspace=empty), screen=Screen(console, console), registry=registry
        )
        try:
            shell.execute(line)
        except UserError as error:
            clean(error)
        except ExitRequested:
            pass
        try:
            make_request(train.parse(line))
        except UserError as error:
            clean(error)

    return command


def changed(seed: bytes, choose: random.Random, others: list[bytes]) -> bytes:
    """Change a few bytes, take some away or put some in, from other seeds too."""
    data = bytearray(seed)
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data) + 1)
        match choose.randrange(6):
            case 0 if data:
                data[place % len(data)] = choose.randrange(256)
            case 1:
                del data[place : place + choose.randint(1, 8)]
            case 2:
                data[place:place] = choose.randbytes(choose.randint(1, 8))
            case 3:
                other = choose.choice(others)
                start = choose.randrange(len(other))
                data[place:place] = other[start : start + choose.randint(1, 20)]
            case 4 if data:
                data[place % len(data)] ^= 1 << choose.randrange(8)
            case _:
                data[place:place] = choose.choice(
                    (b"9" * 30, b"[" * 80, b"\\u0000", b"\x1b[", b'"', b"-1", b"1e999")
                )
    return bytes(data)


def main() -> int:
    """Run one of the fuzzers for so many inputs."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", choices=("header", "gguf", "command"))
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--random", action="store_true", help="without atheris, even if it is there"
    )
    options = parser.parse_args()
    target, seeds = {
        "header": lambda: (header, HEADERS),
        "gguf": lambda: (gguf, gguf_seeds()),
        "command": lambda: (
            commander(), [line.encode("utf-8", "surrogatepass") for line in LINES]
        ),
    }[options.what]()  # fmt: skip
    if atheris and not options.random:
        flags = [
            f"-runs={options.runs}",
            f"-seed={options.seed + 1}",
            "-max_len=512",
            "-print_final_stats=1",
            "-timeout=5",
        ]
        corpus = Path(sys.argv[0]).parent / ".fuzz" / options.what
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], *flags, str(corpus)], target)
        atheris.Fuzz()
    choose, started = random.Random(options.seed), time.perf_counter()
    for _ in range(options.runs):
        data = changed(choose.choice(seeds), choose, seeds)
        try:
            target(data)
        except BaseException:
            print(f"escaped with {data!r}", file=sys.stderr)
            raise
    print(
        f"{options.what}: {options.runs:,} inputs in {time.perf_counter() - started:.0f} s, "
        "none escaped"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
