"""The code of a part of this program, with the sizes of a text in its comments."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import minillm_repl
from minillm_repl.errors import UserError
from minillm_repl.insight.views.source import SourceView
from minillm_repl.language import _

_ROOT = Path(minillm_repl.__file__).parent
# a comment at the end of a line that names a shape, b being its first dimension
_SHAPE = re.compile(r"  # .*\(b, .*")


def source_view(part: str, thing: Any, sizes: Mapping[str, int] | None = None) -> SourceView:
    """Return the code of a class, a function or a module.

    With `sizes` (as insight/shapes.py names them), these stand in its comments for the letters.
    Raises UserError if the code is not there.
    """
    try:
        lines, line = inspect.getsourcelines(thing)
        file = Path(inspect.getsourcefile(thing) or "").relative_to(_ROOT)
    except (OSError, ValueError):
        raise UserError(_("this program was installed without its source code")) from None
    code = dedent("".join(lines)).rstrip()
    if sizes is not None:
        code = _SHAPE.sub(lambda comment: _sized(comment[0], sizes), code)
    return SourceView(part, file.as_posix(), max(line, 1), _summary(thing), code, sizes is not None)


def _sized(comment: str, sizes: Mapping[str, int]) -> str:
    named = {
        "b": 1,
        "past": 0,
        "g": sizes["h"],
        "d_mlp": sizes["f"],
        **sizes,
    }
    return re.sub(r"\w+", lambda word: str(named.get(word[0], word[0])), comment)


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
