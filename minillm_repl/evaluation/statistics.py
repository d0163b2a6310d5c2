"""How sure a figure is: intervals, calibration, and two models on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval
_BINS = 10


@dataclass(frozen=True)
class Rate:
    """How many of some items are right, and the 95 % interval of that share."""

    right: int
    count: int
    share: float
    low: float
    high: float


def wilson(right: int, count: int) -> Rate:
    """Return a share with its 95 % interval (Wilson, 1927), which stays within 0 to 1."""
    share, z2 = right / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At the ends the interval touches 0 or 1; rounding must not pass them.
    low = 0.0 if right == 0 else max(0.0, middle - half)
    return Rate(right, count, share, low, 1.0 if right == count else min(1.0, middle + half))


@dataclass(frozen=True)
class Bin:
    """The items of which the model was about as sure."""

    low: float  # the least confidence
    high: float
    count: int
    confidence: float  # the mean
    right: float  # the share of right ones


@dataclass(frozen=True)
class Calibration:
    """How well confidence agrees with being right."""

    ece: float  # Σ count · |right − confidence| ÷ all: the expected calibration error
    bins: tuple[Bin, ...]  # of equal width, without the empty ones


def calibrate(confidences: Sequence[float], rights: Sequence[bool]) -> Calibration:
    """Return the expected calibration error (Guo et al., 2017) over ten bins of equal width."""
    bins = list[Bin]()
    # A confidence on the edge of two bins is in the lower one, as in the paper.
    places = [min(max(-int(-each * _BINS // 1) - 1, 0), _BINS - 1) for each in confidences]
    for place in range(_BINS):
        inside = [index for index, each in enumerate(places) if each == place]
        if inside:
            bins.append(
                Bin(
                    low=place / _BINS,
                    high=(place + 1) / _BINS,
                    count=len(inside),
                    confidence=sum(confidences[index] for index in inside) / len(inside),
                    right=sum(rights[index] for index in inside) / len(inside),
                )
            )
    error = sum(each.count * abs(each.right - each.confidence) for each in bins)
    return Calibration(error / max(1, len(confidences)), tuple(bins))


@dataclass(frozen=True)
class McNemar:
    """Two models on the same items: where only one of them is right."""

    only_first: int
    only_second: int
    p: float  # of so unequal counts, or more unequal ones, if both models were as good


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Return the exact two-sided test of McNemar (1947): a binomial test of the two counts."""
    ours = sum(a and not b for a, b in zip(first, second, strict=True))
    theirs = sum(b and not a for a, b in zip(first, second, strict=True))
    n = ours + theirs
    tail = sum(comb(n, k) for k in range(min(ours, theirs) + 1))
    return McNemar(ours, theirs, min(1.0, 2 * tail / (1 << n)))


@dataclass(frozen=True)
class Difference:
    """The difference of two rates over the same bytes, and its 95 % interval."""

    value: float  # bits per byte: the first model less the second
    low: float
    high: float
    lines: int
    size: int  # bytes


def paired_difference(
    first: Sequence[float], second: Sequence[float], sizes: Sequence[int]
) -> Difference:
    """Return the difference in bits per byte over lines with the given bits and sizes.

    The interval is that of a ratio estimator (Cochran, 1977): lines are the units, and differ
    from the rate by chance.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n, size = len(differences), sum(sizes)
    rate = sum(differences) / size
    rest = [each - rate * weight for each, weight in zip(differences, sizes, strict=True)]
    variance = n / (n - 1) * sum(each * each for each in rest) if n > 1 else float("inf")
    half = _Z * sqrt(variance) / size
    return Difference(rate, rate - half, rate + half, n, size)
