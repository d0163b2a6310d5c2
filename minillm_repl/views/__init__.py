"""The views: each file holds one way to look at a model, from the numbers to the command.

A view's file has four parts, in this order:

- a frozen dataclass, `class LensView(View, Truncation)`: plain numbers and labels, no tensors;
- `compute(inspected, ...) -> LensView`, which reads an `InspectedText` (a model and a text) and
  raises `UserError` for a layer or a position that does not exist;
- the drawing, `LensView.draw(width)`;
- the command, whose docstring is its help and whose `example` a test runs.

Without a terminal, the same parts work alone:

    from minillm_repl.views import lens
    from minillm_repl.views.inspected_text import InspectedText

    inspected = InspectedText(language_model, tokenizer, ids)
    view = lens.compute(inspected, position=-1, top=5)  # LensView
    view.rows[-1].top[0].prob                           # the numbers
    rich.print(view)                                    # the picture
    view.to_dict()                                      # what `--json` writes
    view                                                # in a notebook, the picture too

Nothing here imports torch before something is computed. What views share is in base.py (`View`,
`Likely`), inspected_text.py (`InspectedText`, places in the residual stream, top-k, rank, KL) and
inspecting.py (what the commands read and where their output goes). `render` has the shared
drawing: bars, tables, strips of tokens.
"""

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

from minillm_repl.repl.plugins import load_plugins


@cache
def computed_views() -> dict[str, Callable[..., Any]]:
    """Return the functions `compute` that take an inspected text, by the names of their files.

    Those of plugins are among them, by the names of their entry points.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    functions = {
        name: getattr(module, "compute", None)
        for name, module in (load_plugins().loaded | modules).items()
    }
    return {
        name: compute
        for name, compute in functions.items()
        if compute and "inspected" in signature(compute).parameters
    }
