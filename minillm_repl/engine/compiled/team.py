"""Threads that work through one list of tasks together, and meet after each kind of task.

numba's own parallel loops start and end one team per loop, which costs more than a small product, and one of its three
schedulers ends the process when two Python threads meet in it. Here one compiled function runs in every thread of the
team at once; whoever is free claims the next task, and nobody goes on to the next phase before all tasks of this one
are done. A thread that waits for longer than a moment offers its core to others.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minillm_repl.engine.compiled.compiling import compiled

_PATIENCE = 4_000  # looks at the counter, some microseconds, before the core is offered to others
_APART = 8  # whole numbers from one counter to the next: a line of the cache each
_OFFER = "SwitchToThread" if os.name == "nt" else "sched_yield"

_offer_core = types.ExternalFunction(_OFFER, types.int32())


class Team:
    """Some threads, this one included. One function at a time; `phases` is the most that it goes through.

    Raises ImportError where the system has no way to offer a core to others.
    """

    def __init__(self, size: int, phases: int) -> None:
        if llvmlite.binding.address_of_symbol(_OFFER) is None:
            raise ImportError(f"this system has no {_OFFER}")
        self.size = size
        self._counters = np.zeros((phases * 2 + 1) * _APART, np.int64)
        self._others = ThreadPoolExecutor(max(1, size - 1), "decoding")

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function(counters, size, me, *arguments)` in every thread at once, and return when all have.

        `me` is the number of the thread, from 0.
        """
        self._counters[:] = 0
        others = []
        try:
            others += [
                self._others.submit(function, self._counters, self.size, other, *arguments)
                for other in range(1, self.size)
            ]
            function(self._counters, self.size, 0, *arguments)
        except BaseException:  # a second Ctrl-C before all have begun: nobody must wait for who never comes
            self._counters[:] = 1 << 40
            raise
        finally:
            for other in others:
                other.result()


def default_size() -> int:
    """Return how many threads to decode with: what limits is memory, which two to four cores use up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 4 else min(8, cores // 2)  # above, half are often the same cores seen twice


@intrinsic
def _add(_typing: Any, counters: Any, _index: Any, _number: Any) -> Any:
    """Add to a counter that others change too; return what it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(counters, types.intp, types.int64), code


@intrinsic
def _look(_typing: Any, counters: Any, _index: Any) -> Any:
    """Return a counter that others change."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data: ir.Value = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(counters, types.intp), code


@compiled
def claim(counters, phase):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - numba infers the types
    """Return the number of the next task of a phase that nobody has claimed."""
    return _add(counters, 2 * phase * _APART, 1)


@compiled
def meet(counters, size, phase):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - numba infers the types
    """Wait until everyone has done with a phase; return the next."""
    arrivals = (2 * phase + 1) * _APART
    _add(counters, arrivals, 1)
    looks = 0
    while _look(counters, arrivals) < size:
        looks += 1
        if looks > _PATIENCE:
            _offer_core()
    return phase + 1
