"""`:quit`."""

from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import ExitRequested, Shell


@command("quit", aliases=("q", "exit", "bye", "끝"))
def quit_(_shell: Shell, _asked: Arguments) -> None:
    """Quit (Ctrl-D)."""
    raise ExitRequested
