"""The machine code of a pass through a model: made by numba once, kept, fetched without numba.

Importing numba and unpacking what it keeps itself takes longer than answering. So what it compiles
is kept here as the object file that it is, and put into the process by LLVM alone. It calls nothing
of Python's or numba's.
"""

import ctypes
import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from platformdirs import user_cache_path

from minillm_repl.errors import UserError
from minillm_repl.generate.backends.compiled.team import OFFER
from minillm_repl.storage.atomic import write_atomically

Function = Callable[..., None]

_KEPT = 16  # files; the least recently used of more are removed
_DIGEST = hashlib.sha256().digest_size
_NEEDED = re.compile(r'^declare [^@]*@"?(?!llvm\.)([^"(]+)', re.MULTILINE)
# so begins what numba's functions call to fail or to free, and none here does
_NEVER_CALLED = ("numba_", "NRT_")

_engines: list[Any] = []  # code is there as long as they are


@cache
def machine_code(*kinds: str) -> Function:
    """Return the function that `forward.compile_for` makes for some kinds of numbers.

    The first time on a machine, and after a change of this program, it is compiled, which takes
    some seconds. Raises ImportError where numba is needed and not there.
    """
    name = "-".join(kinds)
    key = _key(name)
    kept = next(filter(None, (_read(folder / f"{name}.{key}.code") for folder in _folders())), None)
    if kept is None:
        kept = _compile(*kinds)
        for folder in _folders():
            if _keep(folder, f"{name}.{key}.code", kept):
                break
    return _load(kept)


def _folders() -> list[Path]:
    """Return where machine code may be: as numba says, by the program, or in the user's cache."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    own = Path(__file__).parent / "__pycache__"
    return [Path(named)] if named else [own, user_cache_path("minillm-repl") / "compiled"]


def _key(name: str) -> str:
    """Return what changes with anything that the machine code is made of or for."""
    numba = sorted(
        f"{key}={value}" for key, value in os.environ.items() if key.startswith("NUMBA_CPU")
    )
    parts = [
        name,
        version("numba"),
        llvmlite.__version__,
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        *numba,
    ]
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"\0".join([*map(str.encode, parts), *sources])).hexdigest()[:16]


def _compile(*kinds: str) -> bytes:
    from minillm_repl.generate.backends.compiled.forward import compile_for

    made = compile_for(*kinds)
    code: bytes = made._library._get_compiled_object()
    head = {"name": made.native_name, "needs": _NEEDED.findall(made.inspect_llvm())}
    return json.dumps(head).encode() + b"\n" + code


def _read(path: Path) -> bytes | None:
    """Return what a file holds, None if it is missing or damaged: LLVM would end the process."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        return None
    with suppress(OSError):
        os.utime(path)
    return data[_DIGEST:]


def _keep(folder: Path, name: str, data: bytes) -> bool:
    """Write a file, and remove old ones; tell whether that could be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, hashlib.sha256(data).digest(), data)
        for old in sorted(folder.glob("*.code"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            old.unlink()
    except (OSError, UserError):
        return False
    return True


def _load(kept: bytes) -> Function:
    head, _, code = kept.partition(b"\n")
    name, needs = itemgetter("name", "needs")(json.loads(head))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    # from here on it finds what this process has
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    if llvm.address_of_symbol(OFFER) is None:
        raise ImportError(f"this system has no {OFFER}")
    for symbol in needs:
        if llvm.address_of_symbol(symbol) is not None:
            continue
        if symbol.startswith(_NEVER_CALLED):
            llvm.add_symbol(symbol, llvm.address_of_symbol("abort"))
        else:  # of a library that numba knows where to find
            import_module("numba")
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(engine.get_function_address(name))
