"""How this program compiles: what numba is told, and where what it makes is kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Sums may be reordered (that is what lets them be vectorised), but NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {
    "fastmath": {"reassoc", "nsz", "contract", "arcp"},
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls."""
    return njit(no_cpython_wrapper=True, **_OPTIONS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, keeping the result on disk where there is room for it.

    It runs without Python's lock, so that several threads can.
    """
    try:
        dispatcher = njit(cache=True, nogil=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder here may be written to: compiled anew in every process
        return njit(nogil=True, **_OPTIONS)(function)
    # numba compiles anew when the file of the function has changed; what it calls lies in the files beside this one.
    dispatcher._cache._cache_file._source_stamp = _digest(Path(function.__code__.co_filename))
    return dispatcher


def _digest(own: Path) -> str:
    """Return what changes with any source that the compiled code is made of."""
    sources = sorted({own, *Path(__file__).parent.glob("*.py")})
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
