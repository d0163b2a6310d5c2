"""What a benchmark is given, what it gives back, and how several things are measured fairly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

from benchmarks.reference import Reference

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Bench:
    """What every benchmark is given."""

    runs: int  # of each thing
    folder: Path  # for what has to be written; removed at the end
    reference: Reference | None  # None when no path to it was given
    shakespeare: Path | None = None  # the text; None when no path to it was given
    # the folder of SmolLM2-135M-Instruct; None when no path to it was given
    smollm2: Path | None = None


@dataclass(frozen=True)
class Target:
    """What ours ÷ peer's must come to."""

    sign: Literal["≤", "≥"]
    ratio: float

    def met(self, ratio: float) -> bool:
        """Tell whether a ratio is on the right side."""
        return ratio <= self.ratio if self.sign == "≤" else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{self.sign} {self.ratio:.3g}"


@dataclass(frozen=True)
class Row:
    """One line of the table. A peer that could not be measured has no figures."""

    name: str
    unit: str
    ours: tuple[float, ...]  # one figure per run
    peer_name: str = ""
    peer: tuple[float, ...] = ()
    target: Target | None = None
    memory: tuple[float, float | None] | None = None  # peak of our process and of the peer's, MiB

    @property
    def ratio(self) -> float | None:
        """The median of ours ÷ the median of the peer's."""
        return median(self.ours) / median(self.peer) if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none, or nothing to compare with."""
        return None if self.target is None or self.ratio is None else self.target.met(self.ratio)

    def as_json(self) -> dict[str, Any]:
        """Return everything that is known, medians and single figures."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": median(self.ours),
            "peer_name": self.peer_name,
            "peer": median(self.peer) if self.peer else None,
            "ratio": self.ratio,
            "target": str(self.target) if self.target else None,
            "met": self.met,
            "peak_mib": self.memory,
            "ours_runs": self.ours,
            "peer_runs": self.peer,
        }


def alternate(
    runs: int, measures: Mapping[str, Callable[[], ResultT]]
) -> dict[str, tuple[ResultT, ...]]:
    """Measure each thing `runs` times, in turn: what else the machine does meets all alike."""
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(runs)]
    return {name: tuple(results[name] for results in rounds) for name in measures}
