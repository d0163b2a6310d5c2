"""The terminal's own settings while the program is busy."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def typing_ahead() -> Iterator[None]:
    """Keep keys that are typed while the model writes for the next prompt line, and off the screen.

    prompt_toolkit sets its own mode for each prompt line, and comes back to this one in between. Left alone, the
    terminal would echo them into the text and turn Enter into Ctrl-J. Ctrl-C still interrupts.
    """
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):  # Windows, or stdin is no terminal
        yield
        return
    quiet = before.copy()
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
