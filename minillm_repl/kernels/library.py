"""The choice of the C library: the fastest variant that runs here, or the one that is asked for."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.kernels import VARIANTS, digest, file_name
from minillm_repl.language import _

_SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Library:
    """A loaded variant of the C library, or none, and why."""

    functions: ctypes.CDLL | None  # without one, torch runs the models
    variant: str  # one of VARIANTS, or "off"
    reason: str  # one line for the user


@dataclass(frozen=True)
class _Candidate:
    """What became of the file of a variant: loaded, or why not."""

    functions: ctypes.CDLL | None
    problem: str = ""


def load_library(requested: str = "auto") -> Library:
    """Return the library of a variant; auto is the fastest that this processor runs.

    `requested` is auto, off, or one of VARIANTS. The tests set MINILLM_KERNELS_DIR, the folder of
    the files. Raises UserError if the requested variant does not exist or does not run here.
    """
    if requested == "off":
        return Library(None, "off", _("kernels are off"))
    folder = _folder()
    if requested == "auto":
        return _load_fastest(folder)
    found = _load_variant(folder, requested)
    if found.functions is None:
        raise UserError(
            _(
                "kernels {name}: {problem}; available here: {names}",
                name=requested,
                problem=found.problem,
                names=", ".join(["auto", *available(), "off"]),
            )
        )
    return Library(found.functions, requested, _("as requested"))


def available() -> list[str]:
    """Return the variants that run on this processor, the fastest first."""
    return [name for name in VARIANTS if _load_variant(_folder(), name).functions]


def _folder() -> Path:
    return Path(os.environ.get("MINILLM_KERNELS_DIR") or _SOURCES)


def _load_fastest(folder: Path) -> Library:
    problems = []
    for variant in VARIANTS:
        found = _load_variant(folder, variant)
        if found.functions is not None:
            return Library(found.functions, variant, _("the fastest on this processor"))
        if (folder / file_name(variant)).exists():
            problems.append(f"{variant}: {found.problem}")
    if not problems:
        problems = [_("the C library was not built for this system (docs/kernels.md)")]
    return Library(None, "off", "; ".join(problems))


def _load_variant(folder: Path, variant: str) -> _Candidate:
    path = folder / file_name(variant)
    if not path.exists():
        return _Candidate(None, _("not built here"))
    try:
        functions = ctypes.CDLL(str(path))
        supported, abi = functions.minillm_supported, functions.minillm_abi
    except (OSError, AttributeError) as error:
        return _Candidate(None, " ".join(str(error).split()))
    if not supported():
        return _Candidate(None, _("this processor cannot run it"))
    # Calls with other structures than those that it was compiled with would write anywhere.
    if abi() != digest(_SOURCES):
        return _Candidate(None, _("older than its source: run python tools/compile_kernels.py"))
    return _Candidate(functions)
