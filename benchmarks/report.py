"""The table and the JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.measure import Row


def print_report(
    rows: Sequence[Row], machine: Mapping[str, str], missing: Sequence[str], runs: int
) -> None:
    """Print the machine, the table, and what could not be measured."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 140  # a pipe has no width of its own, and whoever reads it can scroll
    console.print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    console.print(table(rows, runs))
    for each in missing:
        console.print(Text(f"not measured: {each}", "yellow"))


def table(rows: Sequence[Row], runs: int) -> Table:
    """Return the rows as a table of medians."""
    grid = Table(title=f"medians; runs of each, taken in turn: {runs}", title_justify="left")
    for column in ("what", "ours", "peer", "ours ÷ peer", "target", "peak MiB"):
        grid.add_column(column, justify="left" if column in ("what", "peer") else "right")
    for row in rows:
        peer = (
            f"{figure(median(row.peer))} {row.peer_name}"
            if row.peer
            else f"– {row.peer_name}".rstrip(" –")
        )
        ratio = "" if row.ratio is None else figure(row.ratio)
        ours = f"{figure(median(row.ours))} {row.unit}"
        memory = (
            ""
            if row.memory is None
            else " / ".join("–" if each is None else f"{each:,.0f}" for each in row.memory)
        )
        grid.add_row(row.name, ours, peer, ratio, verdict(row), memory)
    return grid


def verdict(row: Row) -> Text:
    """Return the target and whether it is reached, in words as well as in colour."""
    if row.target is None:
        return Text("")
    words = {
        True: ("reached", "green"),
        False: ("MISSED", "bold red"),
        None: ("not measured", "yellow"),
    }[row.met]
    return Text.assemble(f"{row.target} ", words)


def figure(number: float) -> str:
    """Return a number with as many digits as mean something."""
    if number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.3g}"


def write_json(
    path: Path, rows: Sequence[Row], machine: Mapping[str, str], missing: Sequence[str], runs: int
) -> None:
    """Write everything that was measured, single runs included."""
    data = {
        "machine": machine,
        "runs": runs,
        "rows": [row.as_json() for row in rows],
        "not_measured": missing,
    }
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
