"""How functions of this program are compiled: what numba is told."""

from collections.abc import Callable
from typing import Any

from numba import njit

# Sums may be reordered (that is what lets them be vectorised), but NaN and infinity keep their
# meaning.
OPTIONS: dict[str, Any] = {
    "fastmath": {"reassoc", "nsz", "contract", "arcp"},
    "error_model": "numpy",
    "_nrt": False,
}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)
