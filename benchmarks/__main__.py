"""Measure the project and its peers in one run.

python -m benchmarks --reference PATH/reference_minillm.py [--shakespeare PATH/tinyshakespeare.txt]
    [--smollm2 PATH/SmolLM2-135M-Instruct] [--json FILE] [--only NAME] [--runs N]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    drawing,
    generation,
    gpu,
    hooks,
    keys,
    machine,
    shakespeare,
    smollm2,
    start,
    training,
)
from benchmarks.measure import Bench, Row
from benchmarks.reference import Reference
from benchmarks.report import print_report, write_json

# Those that start processes from a small one come first: the later ones import torch into this
# process.
BENCHMARKS: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start.rows,
    "keys": keys.rows,
    "drawing": drawing.rows,
    "smollm2": smollm2.rows,
    "generation": generation.rows,
    "gpu": gpu.rows,
    "hooks": hooks.rows,
    "training": training.rows,
    "shakespeare": shakespeare.rows,
}


def main() -> int:
    """Measure what was asked for; return 1 if a target is missed."""
    options = _parser().parse_args()
    reference = Reference(options.reference) if options.reference else None
    missing = (
        []
        if reference
        else ["the reference script (give its path: --reference PATH/reference_minillm.py)"]
    )
    if reference and not reference.path.is_file():
        sys.exit(f"there is no file {reference.path}")
    if not options.shakespeare:
        missing.append("tinyshakespeare (give its path: --shakespeare PATH/tinyshakespeare.txt)")
    if options.only:
        missing.append(
            f"{', '.join(name for name in BENCHMARKS if name != options.only)} (--only "
            f"{options.only})"
        )
    facts, rows = machine.facts(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.runs, Path(folder), reference, options.shakespeare, options.smollm2)
        missing += smollm2.missing(bench) + gpu.missing()
        for name, measure in BENCHMARKS.items():
            if options.only in (None, name):
                print(f"measuring {name} …", file=sys.stderr)
                rows += measure(bench)
    facts["load average at the end"] = machine.load()
    print_report(rows, facts, missing, options.runs)
    if options.json:
        write_json(options.json, rows, facts, missing, options.runs)
    return int(any(row.met is False for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the project and its peers."
    )
    parser.add_argument(
        "--reference", type=Path, metavar="PATH", help="the study note's program, as a script"
    )
    parser.add_argument(
        "--shakespeare",
        type=Path,
        metavar="PATH",
        help="tinyshakespeare.txt, for nanoGPT's CPU run",
    )
    parser.add_argument(
        "--smollm2", type=Path, metavar="PATH", help="the folder of SmolLM2-135M-Instruct"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--only", choices=list(BENCHMARKS), help="measure this alone")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="of each thing (default: 5)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
