"""Ctrl-C as a question that is asked between two steps."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TypeVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.job_control import is_foreground

ResultT = TypeVar("ResultT")

_POLL_INTERVAL = 0.05  # seconds between two looks at whether Ctrl-C was pressed
_EXIT_PRESSES = 3  # presses of Ctrl-C during one action that end the program


class InterruptCounter:
    """Counts how often Ctrl-C was pressed during one action. Call it to ask whether it was."""

    is_escape = False  # whether the first was Esc, which stops an answer as Ctrl-C does

    def __init__(self, count: int) -> None:
        self.count = count

    def press_escape(self) -> None:
        """Count Esc."""
        self.is_escape = not self.count
        self.count += 1

    def __call__(self) -> bool:
        """Tell whether it was pressed."""
        return self.count > 0

    @property
    def wants_exit(self) -> bool:
        """Whether it was pressed so often that the program itself is meant."""
        return self.count >= _EXIT_PRESSES


@contextmanager
def interruptible(
    *,
    is_interrupted: bool = False,
    has_unsaved: Callable[[], bool] = bool,
    is_training: Callable[[], bool] = bool,
) -> Iterator[InterruptCounter]:
    """Yield a counter of Ctrl-C. The action asks it between two steps, and stops.

    A second Ctrl-C raises KeyboardInterrupt at once. A third raises SystemExit; while there are
    unsaved weights, it does what the second does. While a model is being trained, a third and
    later ones raise nothing: what was learnt is being brought in. With `is_interrupted`, Ctrl-C
    was already pressed once.
    """
    presses = InterruptCounter(int(is_interrupted))

    def press(_signal: int, _frame: FrameType | None) -> None:
        presses.count += 1
        # The first only asks; it never cuts a step in two.
        if presses.count == 1 or (presses.wants_exit and is_training()):
            return
        if presses.count == _EXIT_PRESSES and not has_unsaved():
            raise SystemExit(128 + signal.SIGINT)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield presses  # signals reach only the main thread
        return
    with _signal_handler(press):
        yield presses


@contextmanager
def raising_interruptible() -> Iterator[InterruptCounter]:
    """Do what `interruptible` does; what ends early raises KeyboardInterrupt, not UserError."""
    with interruptible() as interrupted:
        try:
            yield interrupted
        except UserError:
            if interrupted():
                raise KeyboardInterrupt from None
            raise


def complete_in_thread(done: Future[ResultT], action: Callable[[], ResultT]) -> None:
    """Run `action` in a thread, which does not keep the program from ending; `done` gets its result
    or its error.
    """

    def work() -> None:
        try:
            done.set_result(action())
        # Every error, KeyboardInterrupt too: the thread that waits raises it again.
        except BaseException as error:  # noqa: BLE001
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()


def run_interruptibly(action: Callable[[], ResultT], interrupted: Callable[[], bool]) -> ResultT:
    """Run `action` in a thread, because nothing interrupts it (an import, for example), and return
    its result.

    Raises what it raises, and UserError when interrupted; the thread goes on then.
    """
    done: Future[ResultT] = Future()
    complete_in_thread(done, action)
    while not wait([done], _POLL_INTERVAL).done:
        if interrupted():
            raise UserError(_("stopped"))
    return done.result()


@contextmanager
def catch_termination() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal to end that has come, SIGTERM or SIGHUP, or 0.

    Meanwhile none of them ends the process.
    """
    received = 0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # signals reach only the main thread
        return
    with ExitStack() as stack:
        for number in _termination_signals():
            stack.enter_context(_signal_handler(note, number))
        yield lambda: received


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program after the terminal's settings are put back."""
    received = 0

    def leave(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if (
            not is_foreground()
        ):  # the terminal is the shell's: to put back its settings would stop us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    try:
        with ExitStack() as stack:
            for number in _termination_signals():
                stack.enter_context(_signal_handler(leave, number))
            yield
    finally:
        if received:
            signal.signal(received, signal.SIG_DFL)
            os.kill(os.getpid(), received)  # the sender sees by which signal the process ended


@contextmanager
def default_interrupt() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, which is what Python does by default."""
    with _signal_handler(signal.default_int_handler):
        yield


@contextmanager
def idle_interrupts() -> Iterator["IdleInterrupts"]:
    """Yield what notes a Ctrl-C between two lines.

    Between an answer and the next prompt line it does nothing. After a line it counts for that
    line.
    """
    presses = IdleInterrupts()
    with _signal_handler(presses.press):
        yield presses


class IdleInterrupts:
    """Whether Ctrl-C was pressed while nothing was going on."""

    def __init__(self) -> None:
        self._pressed = False

    def press(self, _signal: int, _frame: FrameType | None) -> None:
        """Note it."""
        self._pressed = True

    def consume(self) -> bool:
        """Tell whether it was pressed since this was asked the last time."""
        pressed, self._pressed = self._pressed, False
        return pressed


def _termination_signals() -> list[int]:
    """Return the signals that end the program. Under nohup and the like, SIGHUP is not one."""
    # not on Windows
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def _signal_handler(
    handler: Callable[[int, FrameType | None], None], number: int = signal.SIGINT
) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
