"""The settings of the terminal: while the program works, while it is suspended, and afterwards."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], None]
# seconds between two checks whether a program that was resumed in the background is in front
_FOREGROUND_POLL_INTERVAL = 0.2
_SHOW_CURSOR = "\x1b[?25h\x1b[0m"


@contextmanager
def typeahead(
    on_suspend: Callable[[], None], on_resume: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Keep keys that are typed while the model writes for the next prompt line, and off the screen.

    prompt_toolkit sets its own mode for each prompt line, and returns to this one in between.
    Without it, the terminal would echo the keys into the text and turn Enter into Ctrl-J. Ctrl-C
    still interrupts, and Ctrl-Z suspends. After `on_suspend` the terminal is as it was found;
    before `on_resume` it has this mode again. Call what is yielded to set the mode once more,
    whatever a shell has done meanwhile.
    """
    try:
        import termios

        original_mode = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):  # Windows, or stdin is no terminal
        yield lambda: None
        return
    typeahead_mode = [*original_mode[:6], list(original_mode[6])]
    typeahead_mode[0] &= ~termios.ICRNL
    typeahead_mode[3] &= ~(termios.ECHO | termios.ICANON)
    typeahead_mode[6][termios.VMIN], typeahead_mode[6][termios.VTIME] = 1, 0

    def use(mode: list[Any]) -> None:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)

    def back() -> None:
        use(typeahead_mode)
        on_resume()

    def away() -> None:
        on_suspend()
        use(original_mode)

    use(typeahead_mode)
    try:
        with suspendable(away, back):
            yield lambda: use(typeahead_mode)
    finally:
        if is_foreground():  # else it is the shell's, which has settings of its own
            use(original_mode)


@contextmanager
def suspendable(
    on_suspend: Callable[[], None] = lambda: None, on_resume: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let Ctrl-Z suspend the program after `on_suspend`; `on_resume` is called when it is in the
    foreground again.
    """
    # Windows; a wish
    if not hasattr(signal, "SIGTSTP") or signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        yield
        return

    is_suspended = False

    def suspend(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_suspended
        is_suspended = True
        on_suspend()
        write_unbuffered(_SHOW_CURSOR)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # here it stands still, and the signal that wakes it calls `go_on`
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, suspend)
        signal.siginterrupt(signal.SIGTSTP, False)
        if is_suspended:  # it did not stand still: no shell could have woken it
            resume()

    def resume(*_signal: Any) -> None:
        nonlocal is_suspended
        is_suspended = False
        if is_foreground():
            on_resume()
        else:
            signal.setitimer(signal.ITIMER_REAL, _FOREGROUND_POLL_INTERVAL)

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTSTP: suspend,
        signal.SIGCONT: resume,
        signal.SIGALRM: resume,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    for number in handlers:
        # A call that was interrupted begins again: a change of the terminal's settings from the
        # background stops the program in the middle of it, and `termios` raises an error else.
        signal.siginterrupt(number, False)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def on_process_resume(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` when the program resumes, before the terminal's settings are restored."""
    if not hasattr(signal, "SIGCONT") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCONT)

    def resume(number: int, frame: FrameType | None) -> None:
        callback()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGCONT, resume)
    signal.siginterrupt(signal.SIGCONT, False)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


def is_foreground() -> bool:
    """Return whether the terminal is ours to set. In the background it is the shell's."""
    if not hasattr(os, "tcgetpgrp"):
        return True
    with suppress(OSError, ValueError):
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return False


def write_unbuffered(sequence: str) -> None:
    """Write to the terminal, if there is one, past all buffers: a signal may interrupt a write."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream.isatty():
                os.write(stream.fileno(), sequence.encode())
                return
