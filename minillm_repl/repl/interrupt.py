"""Ctrl-C as a question that is asked between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed since; a second Ctrl-C raises KeyboardInterrupt at once."""
    pressed = False

    def press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach only the main thread
        return
    with _handling(press):
        yield lambda: pressed


@contextmanager
def told_to_end() -> Iterator[Callable[[], int]]:
    """Give a function that tells which signal to end has come since: SIGTERM, SIGHUP, or 0 for none.

    Meanwhile none of them ends the process at once.
    """
    came = 0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # signals reach only the main thread
        return
    with ExitStack() as stack:
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):  # Windows has no SIGHUP
                stack.enter_context(_handling(note, getattr(signal, name)))
        yield lambda: came


def uninterrupted() -> AbstractContextManager[None]:
    """Let a Ctrl-C that comes when nothing is going on, between an answer and the next prompt line, do nothing."""
    return _handling(lambda _signal, _frame: None)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], number: int = signal.SIGINT) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
