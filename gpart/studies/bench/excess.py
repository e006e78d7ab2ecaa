"""How much longer a method takes than its reference, and how that compares with the yardstick's own excess.

Invariant: a difference is of two times of one round. Which reference is taken changes every excess by the same amount,
so that two methods' order is the same against any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from gpart.studies.bench.timing import quantile


@dataclass(frozen=True)
class Excess:
    """A method's times less the reference's, in seconds.

    Attributes:
        median: over the rounds, of (time - the reference's time in the same round).
        lower: first quartile of the same.
        upper: third quartile of the same.
        of_minima: minimum - the reference's minimum.
        share: median / the yardstick's median; None where the yardstick takes no longer than the reference.
        share_of_minima: of_minima / the yardstick's; None where that is not above 0.
    """

    median: float
    lower: float
    upper: float
    of_minima: float
    share: float | None
    share_of_minima: float | None


def excesses(samples: Mapping[str, Sequence[float]], reference: str, yardstick: str) -> dict[str, Excess]:
    """Every method's but the reference's.

    Args:
        samples: as :func:`gpart.studies.bench.timing.interleave` gives them.
        reference: whose times are taken off.
        yardstick: whose excess the others' are divided by.

    Example:
        >>> found = excesses({"full": [1.0, 2.0], "lora": [3.0, 4.0], "gpart": [2.0, 4.0]}, "full", "lora")["gpart"]
        >>> found.median, found.share, found.share_of_minima
        (1.5, 0.75, 0.5)
    """
    base = samples[reference]
    above = {
        name: [own - other for own, other in zip(times, base, strict=True)]
        for name, times in samples.items()
        if name != reference
    }
    minima = {name: min(samples[name]) - min(base) for name in above}
    unit, least = median(above[yardstick]), minima[yardstick]
    return {
        name: Excess(
            median(values),
            quantile(values, 0.25),
            quantile(values, 0.75),
            minima[name],
            _share(median(values), unit),
            _share(minima[name], least),
        )
        for name, values in above.items()
    }


def _share(excess: float, unit: float) -> float | None:
    return excess / unit if unit > 0 else None
