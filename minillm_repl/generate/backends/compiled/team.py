"""Threads that work through one list of tasks together, and meet after each kind of task.

numba's own parallel loops start and end one team per loop, which costs more than a small product,
and one of its three schedulers ends the process when two Python threads meet in it. Here one
compiled function runs in every thread of the team at once; whoever is free claims the next task,
and nobody goes on to the next phase before all tasks of this one are done (tasks.py).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

APART = 8  # whole numbers from one counter to the next: a line of the cache each
OFFER = "SwitchToThread" if os.name == "nt" else "sched_yield"  # how a core is offered to others


class Team:
    """Some threads, this one included.

    One function at a time; `phases` is the most that it goes through.
    """

    def __init__(self, size: int, phases: int) -> None:
        self.size = size
        self._counters = np.zeros((phases * 2 + 1) * APART, np.int64)
        self._at = self._counters.ctypes.data
        self._others = ThreadPoolExecutor(max(1, size - 1), "decoding")

    def run(self, function: Callable[..., None], *arguments: int) -> None:
        """Call `function(counters, size, me, *arguments)` in every thread; return when all have.

        `counters` is the address of what they count in, `me` the number of the thread, from 0.
        """
        self._counters.fill(0)
        others = []
        try:
            others += [
                self._others.submit(function, self._at, self.size, other, *arguments)
                for other in range(1, self.size)
            ]
            function(self._at, self.size, 0, *arguments)
        except BaseException:
            # a second Ctrl-C before all have begun: nobody must wait for who never comes
            self._counters[:] = 1 << 40
            raise
        finally:
            for other in others:
                other.result()


def default_size() -> int:
    """Return how many threads to decode with: memory limits, which two to four cores use up."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # above, half are often the same cores seen twice
    return cores if cores <= 4 else min(8, cores // 2)
