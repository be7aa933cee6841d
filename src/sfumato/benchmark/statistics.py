"""Medians with their spread, and ratios of medians with an interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.errors import UsageError

_RESAMPLES = 4000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Seconds of one part: the middle half of the samples lies from `low` to `high`."""

    median: float
    low: float
    high: float
    best: float
    samples: int

    @property
    def spread(self) -> float:
        """Half the width of the middle half, as a share of the median."""
        return (self.high - self.low) / (2 * self.median) if self.median > 0 else 0.0


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, and its 95 % interval."""

    value: float
    low: float
    high: float


def summarise(samples: Sequence[float]) -> Summary:
    """The figures of `samples`, seconds. Raises UsageError if there are none."""
    if not samples:
        raise UsageError("no samples give no median")
    ordered = sorted(samples)
    return Summary(
        median=statistics.median(ordered),
        low=quantile(ordered, 0.25),
        high=quantile(ordered, 0.75),
        best=ordered[0],
        samples=len(ordered),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ascending samples lie, between two of them if need be.

    Linear between order statistics, the seventh definition of Hyndman and Fan (1996).
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio_of_medians(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """median(above) / median(below), with the percentile interval of a bootstrap.

    Samples at one place of the two sequences were taken one after the other, and are drawn
    together: what slowed both down then cancels. Equal seeds give equal intervals. Raises
    UsageError for sequences of unequal length, empty ones, or times that are not above zero.
    """
    if len(above) != len(below) or not above:
        raise UsageError(f"{len(above)} and {len(below)} samples make no pairs")
    if min(*above, *below) <= 0:
        raise UsageError("a time of zero makes no ratio")
    value = statistics.median(above) / statistics.median(below)
    draws = random.Random(seed)
    count, found = len(above), []
    for _ in range(_RESAMPLES):
        places = draws.choices(range(count), k=count)
        top = statistics.median([above[place] for place in places])
        found.append(top / statistics.median([below[place] for place in places]))
    found.sort()
    tail = (1 - _CONFIDENCE) / 2
    return Ratio(value, quantile(found, tail), quantile(found, 1 - tail))
