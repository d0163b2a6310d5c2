"""How soon the prompt accepts keys, beside the import of torch that it does not wait for."""

import subprocess
import sys
from time import perf_counter

from benchmarks.measure import Bench, Row, Target, alternate
from benchmarks.program import Terminal

_KEY = "갂"  # stands nowhere else on the screen


def rows(bench: Bench) -> list[Row]:
    """Measure the start."""

    def prompt() -> float:
        started = perf_counter()
        with Terminal(bench.folder) as terminal:
            terminal.wait_for(">>> ")
            terminal.type(_KEY)
            terminal.wait_for(_KEY)
            return perf_counter() - started

    def torch() -> float:
        started = perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        return perf_counter() - started

    # files into memory
    alternate(1, {"warm up": prompt, "torch": torch})
    took = alternate(bench.runs, {"prompt": prompt, "torch": torch})
    name = "start: until the prompt shows a typed key"
    return [Row(name, "s", took["prompt"], "import torch", took["torch"], Target("≤", 0.2))]
