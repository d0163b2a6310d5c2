"""A terminal in which you can talk to a small language model, train it, and watch every number
it thinks with.

As a library: `import minillm_repl as mr` (docs/python.md). The import does nothing: a name of the
interface is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ("Generation", "Model", "UserError", "View", "load", "train")


def __getattr__(name: str) -> Any:
    if name in __all__:
        # By name: everything below imports this package, which so depends on nothing.
        return getattr(import_module("minillm_repl.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
