"""Measures the loss around trained points, in one process or several.

Invariant: a number depends on its run's files and data, the settings and its own point alone, not on which process computes it, in
which order, or on what was measured before the program was started again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from gpart.serialization.json_numbers import finite
from gpart.studies.finished_run import load_run
from gpart.studies.found_run import FinishedRun
from gpart.studies.lanczos import lanczos, random_vector
from gpart.studies.landscape.directions import Normalise, Scale, draw, reference, scaled
from gpart.studies.landscape.loss import ValidationLoss, validation_loss
from gpart.studies.landscape.settings import Settings
from gpart.studies.landscape.store import Key, Store
from gpart.studies.landscape.workers import results

FACTS, HESSIAN = "facts", "hessian"
_PRODUCT = 6
"""About how many times a loss a product with the Hessian takes, for the time that is left."""

Tell = Callable[[str, float], None]
"""Called with a run's name and the share of the whole work that was just done."""


@dataclass(frozen=True)
class Subject:
    """A run to look at."""

    name: str
    run: FinishedRun


@dataclass(frozen=True)
class Job:
    """What one process does in one go: a run's facts, its loss at one point, or its Hessian's eigenvalues."""

    subject: Subject
    key: Key
    cost: float


def jobs_of(subject: Subject, settings: Settings) -> list[Job]:
    """All there is to measure of a run; the keys' first part says what it depends on besides the point."""
    facts = (subject.run.digest, settings.rows)
    place = (*facts, settings.scale, settings.normalise)
    jobs = [Job(subject, (FACTS, *facts), 1)]
    jobs += [
        Job(subject, ("point", *place, seed, a, b), 1)
        for seed in settings.seeds
        for a in settings.coordinates()
        for b in settings.coordinates()
    ]
    if settings.steps:
        jobs.append(Job(subject, (HESSIAN, *facts, settings.steps), _PRODUCT * settings.steps))
    return jobs


def measure(
    subjects: Sequence[Subject],
    settings: Settings,
    store: Store,
    tell: Tell,
    workers: int = 1,
    accelerator: str = "auto",
) -> None:
    """Measures what the store does not hold yet.

    Args:
        subjects: the runs.
        settings: what to measure.
        store: where each number goes as soon as it is there.
        tell: hears of each.
        workers: processes that measure; with one it is this process.
        accelerator: Lightning's name of the device.

    Raises:
        GPartError: if a run cannot be built, or its loss cannot be measured.
    """
    jobs = [job for subject in subjects for job in jobs_of(subject, settings)]
    total = sum(job.cost for job in jobs)
    missing = []
    for job in jobs:
        if job.key in store.found:
            tell(job.subject.name, job.cost / total)
        else:
            missing.append(job)
    try:
        for job, value in results(missing, partial(_run_job, accelerator=accelerator), workers):
            store.add(job.key, value)
            tell(job.subject.name, job.cost / total)
    finally:
        _directions.cache_clear()
        _loaded.cache_clear()


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A run in this process."""

    loss: ValidationLoss
    method: str
    of_head: bool
    trained: Tensor
    start: Tensor


@lru_cache(maxsize=1)
def _loaded(run: FinishedRun, rows: int | None, accelerator: str) -> _Loaded:
    found = load_run(run, accelerator)
    trained = found.vector.read()
    return _Loaded(validation_loss(found, rows), found.method, found.of_head, trained, found.start.to(trained))


@lru_cache(maxsize=1)
def _directions(loaded: _Loaded, scale: Scale, normalise: Normalise, seed: int) -> tuple[Tensor, Tensor]:
    parts = loaded.loss.vector.split(reference(loaded.trained, loaded.start, scale))
    u, v = (scaled(one.to(loaded.trained), parts, normalise) for one in draw(len(loaded.trained), seed))
    return u, v


def _run_job(job: Job, accelerator: str) -> Any:
    kind, _, rows, *rest = job.key
    loaded = _loaded(job.subject.run, rows, accelerator)
    if kind == FACTS:
        return _facts(loaded)
    if kind == HESSIAN:
        loaded.loss.vector.write(loaded.trained)
        found = lanczos(loaded.loss.hessian_product, random_vector(loaded.trained, seed=0), rest[0])
        return [list(pair) for pair in zip(found.values.tolist(), found.bounds.tolist(), strict=True)][::-1]
    scale, normalise, seed, a, b = rest
    u, v = _directions(loaded, scale, normalise, seed)
    return finite(loaded.loss.at(loaded.trained + a * u + b * v))


def _facts(loaded: _Loaded) -> dict[str, Any]:
    return {
        "method": loaded.method,
        "of_head": loaded.of_head,
        "d": len(loaded.trained),
        "norm": float(loaded.trained.norm()),
        "change": float((loaded.trained - loaded.start).norm()),
        "loss": finite(loaded.loss.at(loaded.trained)),
        "rows": loaded.loss.rows,
        "data": loaded.loss.digest(),
    }
