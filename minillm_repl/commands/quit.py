"""`:quit`."""

from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import ExitRequested, Shell


@command("quit", aliases=("q", "exit", "bye", "끝"))
def quit_(_shell: Shell, _argument: str) -> None:
    """Quit (Ctrl-D)."""
    raise ExitRequested
