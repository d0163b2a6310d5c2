"""What drawing costs: running text and tables of candidates, on a pseudo-terminal of 80 columns."""

import re

from benchmarks.generation import LONG, asked
from benchmarks.measure import Bench, Row, alternate
from benchmarks.program import Terminal, json_finished

_VERBOSE_STEPS = 200


def rows(bench: Bench) -> list[Row]:
    """Measure by the program's own figures, whose clock runs on while it draws."""

    def stream() -> float:
        return _drawn(bench, *asked(LONG))

    def verbose() -> float:
        return _drawn(bench, *asked(_VERBOSE_STEPS), "--verbose")

    def silent() -> float:
        finished = json_finished(bench.folder, *asked(LONG))
        return float(finished["tokens"] / finished["seconds"])

    took = alternate(bench.runs, {"stream": stream, "silent": silent, "verbose": verbose})
    return [
        Row(
            f"draw: {LONG} tokens as running text",
            "tokens/s",
            took["stream"],
            "--json > file",
            took["silent"],
        ),
        Row(f"draw: {_VERBOSE_STEPS} verbose tables", "steps/s", took["verbose"]),
    ]


def _drawn(bench: Bench, *arguments: str) -> float:
    with Terminal(bench.folder, *arguments) as terminal:
        screen = terminal.rest()
    figures = re.findall(r"([\d,]+) tokens/s", screen)
    if not figures:
        raise SystemExit(f"the program printed no figures: {screen[-300:]!r}")
    return float(figures[-1].replace(",", ""))
