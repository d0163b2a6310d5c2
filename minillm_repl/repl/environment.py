"""A home and a folder to be in, which libraries take for granted: not every user has one, and a
folder can go away.
"""

import os
from contextlib import suppress

from minillm_repl.language import _
from minillm_repl.render.console import Screen
from minillm_repl.safetext import safe_line


def ensure_home() -> None:
    """Give a user whom the system does not know, as containers run programs, a home in which
    nothing can be kept.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path's own raises then
        os.environ["HOME"] = os.devnull


def ensure_working_directory(screen: Screen) -> None:
    """Go home, and say so, if the present folder is deleted: libraries end the process there."""
    try:
        os.getcwd()  # noqa: PTH109 - all that is asked is whether it raises
    except FileNotFoundError:
        os.chdir("/")
        with suppress(OSError):
            os.chdir(os.path.expanduser("~"))  # noqa: PTH111 - as above
        here = safe_line(os.getcwd())  # noqa: PTH109 - as above
        screen.warn(
            _(
                "the folder where this session started no longer exists: file names now "
                "refer to {folder}",
                folder=here,
            )
        )
