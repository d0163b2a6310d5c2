"""The terminal's own settings: while the program works, while it is suspended, and once it goes
on.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], None]
# seconds between two looks at whether a program that goes on in the background is in front again
_GLANCE = 0.2
_SHOW_CURSOR = "\x1b[?25h\x1b[0m"


@contextmanager
def typing_ahead(
    leave: Callable[[], None], again: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Keep keys that are typed while the model writes for the next prompt line, and off the screen.

    prompt_toolkit sets its own mode for each prompt line, and comes back to this one in between.
    Left alone, the terminal would echo them into the text and turn Enter into Ctrl-J. Ctrl-C still
    interrupts, and Ctrl-Z suspends: then the terminal is as it was found, after `leave`, and at
    `fg` as it was, before `again`. What is yielded sets the mode once more, whatever a shell has
    done meanwhile.
    """
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):  # Windows, or stdin is no terminal
        yield lambda: None
        return
    quiet = [*before[:6], list(before[6])]
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0

    def use(mode: list[Any]) -> None:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)

    def back() -> None:
        use(quiet)
        again()

    def away() -> None:
        leave()
        use(before)

    use(quiet)
    try:
        with suspendable(away, back):
            yield lambda: use(quiet)
    finally:
        if in_front():  # else it is the shell's, which has settings of its own
            use(before)


@contextmanager
def suspendable(
    leave: Callable[[], None] = lambda: None, again: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let Ctrl-Z suspend the program after `leave`; `again` is called as soon as it goes on in
    the foreground.
    """
    # Windows; a wish
    if not hasattr(signal, "SIGTSTP") or signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        yield
        return

    away = False

    def suspend(_number: int, _frame: FrameType | None) -> None:
        nonlocal away
        away = True
        leave()
        write_through(_SHOW_CURSOR)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # here it stands still, and the signal that wakes it calls `go_on`
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, suspend)
        if away:  # it did not stand still: no shell could have woken it
            go_on()

    def go_on(*_: Any) -> None:
        nonlocal away
        away = False
        if in_front():
            again()
        else:
            signal.setitimer(signal.ITIMER_REAL, _GLANCE)

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTSTP: suspend,
        signal.SIGCONT: go_on,
        signal.SIGALRM: go_on,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signal.siginterrupt(signal.SIGCONT, False)  # what was being done when it stopped begins again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def woken(again: Callable[[], None]) -> Iterator[None]:
    """Have `again` called as soon as the program goes on, before the terminal's settings come
    back.
    """
    if not hasattr(signal, "SIGCONT") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCONT)

    def go_on(number: int, frame: FrameType | None) -> None:
        again()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGCONT, go_on)
    signal.siginterrupt(signal.SIGCONT, False)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


def in_front() -> bool:
    """Tell whether the terminal is ours to set: a program that was put into the background has
    it no longer.
    """
    if not hasattr(os, "tcgetpgrp"):
        return True
    with suppress(OSError, ValueError):
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return False


def write_through(sequence: str) -> None:
    """Write to the terminal, if there is one, past all buffers: a signal may have come in the
    middle of a write.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream.isatty():
                os.write(stream.fileno(), sequence.encode())
                return
