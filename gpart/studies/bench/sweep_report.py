"""A sweep's result as tables and as JSON, which holds every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from gpart.studies.bench.report import Sheet, describe
from gpart.studies.bench.sweep import INDICES, OPERATIONS, Sample, SweepSettings

_COLUMNS = [(kind, indices) for kind in OPERATIONS for indices in INDICES]


def nanoseconds(sample: Sample) -> float:
    """Median time per adapted weight.

    Example:
        >>> nanoseconds(Sample(size=2_000, d=5, kind="expand", indices="stored", seconds=[1e-6, 3e-6, 9e-6]))
        1.5
    """
    return round(1e9 * median(sample.seconds) / sample.size, 6)


def sheets(settings: SweepSettings, samples: Sequence[Sample]) -> list[Sheet]:
    """A table over D and one over d."""
    found = {(one.size, one.d, one.kind, one.indices): one for one in samples}
    sizes = [count * settings.width**2 for count in sorted(set(settings.weights))]
    swept = settings.at_weights * settings.width**2
    note = f"ns per adapted weight, median of {settings.rounds} interleaved rounds; float32."
    columns = [f"{kind}, {indices}" for kind, indices in _COLUMNS]

    def row(size: int, d: int, first: int) -> list[str]:
        return [f"{first:,}", *(f"{nanoseconds(found[(size, d, *column)]):.2f}" for column in _COLUMNS)]

    return [
        Sheet(f"over D, at d = {settings.d:,}", ["D", *columns], [row(size, settings.d, size) for size in sizes], note),
        Sheet(f"over d, at D = {swept:,}", ["d", *columns], [row(swept, d, d) for d in sorted(set(settings.ds))], note),
    ]


def about(machine: dict[str, Any], command: str) -> list[str]:
    """What was measured, where and when, one fact a line."""
    return ["# The two operations alone", "", f"- command: `{command}`", *describe(machine)]


def content(
    settings: SweepSettings, samples: Sequence[Sample], machine: dict[str, Any], command: str
) -> dict[str, Any]:
    """The JSON."""
    return {
        "command": command,
        "machine": machine,
        "settings": asdict(settings),
        "samples": [{**asdict(one), "ns_per_weight": nanoseconds(one)} for one in samples],
    }
