"""How long a typed key takes to show, while the model is loaded in the background."""

from statistics import median
from time import perf_counter, sleep

from benchmarks.measure import Bench, Row, alternate
from benchmarks.program import Terminal

_SECONDS = 3.0
_EVERY = 0.02  # seconds: faster than anyone types
_FIRST = ord("가")  # each key is another syllable, so that none is taken for the echo of one before


def rows(bench: Bench) -> list[Row]:
    """Type from the moment the prompt appears."""
    took = alternate(bench.runs, {"keys": lambda: _latencies(bench)})["keys"]
    return [
        Row(
            "key to echo while the model loads, median",
            "ms",
            tuple(1000 * median(each) for each in took),
        ),
        Row(
            "key to echo while the model loads, longest",
            "ms",
            tuple(1000 * max(each) for each in took),
        ),
    ]


def _latencies(bench: Bench) -> list[float]:
    """Return the seconds from each key to its echo; a key is typed on time, or once the one
    before has shown.
    """
    latencies: list[float] = []
    with Terminal(bench.folder) as terminal:
        terminal.wait_for(">>> ")
        began = perf_counter()
        while (typed := perf_counter()) - began < _SECONDS:
            key = chr(_FIRST + len(latencies))
            terminal.type(key)
            terminal.wait_for(key)
            latencies.append(perf_counter() - typed)
            sleep(max(0.0, typed + _EVERY - perf_counter()))
    return latencies
