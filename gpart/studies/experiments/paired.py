"""Compares the rows of a table with one of them, seed by seed.

Invariant: a difference is between two runs of one column and one seed, which had the same data in the same order. An
order is claimed only where the whole interval lies on one side of 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Of each interval by itself. With 27 of them, one or two that miss the true value are to be expected."""


@dataclass(frozen=True)
class Difference:
    """The mean of a row's scores less the baseline's, scaled."""

    mean: float
    low: float | None
    """The interval's ends; None for a single pair."""
    high: float | None
    count: int
    """The number of seeds that both have."""

    @property
    def ordered(self) -> str | None:
        """``above`` or ``below`` the baseline where the interval excludes 0, else None."""
        if self.low is None or self.high is None:
            return None
        return "above" if self.low > 0 else "below" if self.high < 0 else None


def paired(row: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Returns the mean paired difference with its Student interval; None if the two share no seed.

    With n differences of mean m and standard deviation s (n - 1), the interval is m ± t·s/sqrt(n), where t is Student's
    quantile for n - 1 degrees of freedom. It takes the differences to be normal, which five seeds can't show.

    Args:
        row: the row's scores by seed.
        baseline: the baseline's scores by seed.

    Example:
        >>> difference = paired({0: 81.0, 1: 82.0, 2: 83.0}, {0: 80.0, 1: 80.0, 2: 80.0})
        >>> round(difference.mean, 2), round(difference.low, 2), round(difference.high, 2), difference.ordered
        (2.0, -0.48, 4.48, None)
    """
    pairs = [row[seed] - baseline[seed] for seed in row if seed in baseline]
    if not pairs or not all(map(math.isfinite, pairs)):
        return None
    mean = statistics.fmean(pairs)
    if len(pairs) == 1:
        return Difference(mean, None, None, 1)
    half = student_quantile(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean, mean - half, mean + half, len(pairs))


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Returns t with P(|T| <= t) = ``confidence`` for Student's T with a whole number of degrees of freedom.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4, for P; then bisection.

    Example:
        >>> [round(student_quantile(freedom), 3) for freedom in (1, 2, 4, 30)]
        [12.706, 4.303, 2.776, 2.042]
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 if odd else 1, freedom - 1, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
