"""Timing side by side: every contestant once per round, in an order that changes from round to round.

Invariant: a slower stretch of the machine falls on every contestant alike, and a ratio is of two times of one round. No
garbage is collected while the clock runs, and nothing but ``run`` is between its two readings.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

Tell = Callable[[int, int], None]
"""Is told how many steps are done, and of how many."""


def nothing() -> None:
    """Does nothing."""


def waiting_for(device: torch.device) -> Callable[[], object]:
    """Returns what waits until a device has done all that it was given; a CPU has done it when a call returns."""
    return nothing if device.type == "cpu" else partial(torch.accelerator.synchronize, device)


@dataclass(frozen=True)
class Trial:
    """One contestant.

    Attributes:
        run: what is timed.
        before: what it needs, not timed.
        after: what it leaves to be cleared away, not timed.
    """

    run: Callable[[], object]
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing


@dataclass(frozen=True)
class Summary:
    """A contestant's times, in seconds, and what they are to the reference's; None where there is no reference.

    Attributes:
        median: of the times.
        minimum: of the times.
        lower: their first quartile.
        upper: their third quartile.
        ratio: median over the rounds of (time / the reference's time in the same round).
        ratio_lower: first quartile of the same.
        ratio_upper: third quartile of the same.
        ratio_of_minima: minimum / the reference's minimum.
    """

    median: float
    minimum: float
    lower: float
    upper: float
    ratio: float | None = None
    ratio_lower: float | None = None
    ratio_upper: float | None = None
    ratio_of_minima: float | None = None


def interleave(
    trials: Mapping[str, Trial],
    rounds: int,
    warmup: int = 0,
    seed: int = 0,
    *,
    synchronize: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    tell: Tell | None = None,
) -> dict[str, list[float]]:
    """Times every trial once in each round.

    Args:
        trials: by name.
        rounds: how many are timed.
        warmup: rounds before them whose times are thrown away.
        seed: of the order within the rounds.
        synchronize: waits until the device has done what it was given; called before each reading of the clock.
        clock: seconds.
        tell: is called after each trial.

    Returns:
        Seconds by name, one for each round, in the order of the rounds.

    Example:
        >>> ticks = iter(range(100))
        >>> interleave({"a": Trial(list), "b": Trial(list)}, rounds=2, clock=lambda: float(next(ticks)))
        {'a': [1.0, 1.0], 'b': [1.0, 1.0]}
    """
    shuffle = random.Random(seed)  # noqa: S311  # an order, no secret
    samples: dict[str, list[float]] = {name: [] for name in trials}
    total = (warmup + rounds) * len(trials)
    done = 0
    with _no_collection():
        for number in range(warmup + rounds):
            order = list(trials)
            shuffle.shuffle(order)
            for name in order:
                trial = trials[name]
                trial.before()
                gc.collect()
                synchronize()
                start = clock()
                trial.run()
                synchronize()
                seconds = clock() - start
                trial.after()
                if number >= warmup:
                    samples[name].append(seconds)
                done += 1
                if tell is not None:
                    tell(done, total)
    return samples


def summarize(samples: Mapping[str, Sequence[float]], reference: str | None = None) -> dict[str, Summary]:
    """Median, minimum, quartiles, and ratios to the reference of the same round.

    Args:
        samples: as :func:`interleave` gives them.
        reference: whose times the others' are divided by.

    Example:
        >>> found = summarize({"floor": [1.0, 2.0, 4.0], "method": [2.0, 3.0, 4.0]}, "floor")["method"]
        >>> found.median, found.ratio, found.ratio_of_minima
        (3.0, 1.5, 2.0)
    """
    result = {}
    for name, times in samples.items():
        plain = (median(times), min(times), quantile(times, 0.25), quantile(times, 0.75))
        if reference is None:
            result[name] = Summary(*plain)
            continue
        base = samples[reference]
        ratios = [own / other for own, other in zip(times, base, strict=True)]
        spread = (median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75))
        result[name] = Summary(*plain, *spread, min(times) / min(base))
    return result


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the others lies, linear between two of them.

    Example:
        >>> quantile([4.0, 1.0, 2.0], 0.25), quantile([5.0], 0.75)
        (1.5, 5.0)
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection but by hand, and that not over what is there already: models have millions of objects."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
