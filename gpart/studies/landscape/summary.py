"""The numbers that make landscapes comparable beside their picture.

Invariant: every number here comes from the surfaces, the eigenvalues and the norms alone, so that it can be computed again
from the JSON file.

With L(p) the loss at a point p = (a, b) of the plane, in units of the directions' norm, and L(0) that of the trained point:

    area        share of the grid's square where the mean surface is at most 1.1 · L(0)
    asymmetry   sum |L(p) - L(-p)| / sum |L(p) + L(-p) - 2 L(0)| over the grid: 0 where opposite directions are alike
    anisotropy  (max - min) / mean over the circle's directions p of E(p) = (L(p) + L(-p)) / 2 - L(0), at the radius of the
                grid's span: 0 where the loss rises alike in all directions of the plane, large where it rises along some
    curvature   lambda · r², with r the directions' norm: twice the rise that the eigenvector's own direction would have
                at the grid's unit, were the loss quadratic; unlike lambda it stays the same when theta is measured in other units

Asymmetry and anisotropy are computed for each pair of directions and averaged: a mean surface would hide them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpart.serialization.json_numbers import finite
from gpart.studies.landscape.measuring import FACTS, HESSIAN, Subject, jobs_of
from gpart.studies.landscape.settings import Settings
from gpart.studies.landscape.store import Store

Array = NDArray[np.float64]
WITHIN = 1.1
"""The area's limit, times the trained point's loss."""

_FINE = 201
"""Points a side to which the grid is interpolated for the area."""
_ANGLES = 72
"""Directions of half a circle."""


@dataclass(frozen=True)
class Landscape:
    """What was measured of a run.

    Attributes:
        name: of the run.
        facts: method, d, norms, loss, rows.
        coordinates: of the grid, along both directions, shape (points,).
        surfaces: losses by (seed, a, b); infinite where the loss overflowed.
        eigenvalues: the Hessian's Ritz values with their bounds, the largest first.
        radius: the norm of the directions.
        checkpoint: the name of the file that it is of.
    """

    name: str
    facts: Mapping[str, Any]
    coordinates: Array
    surfaces: Array
    eigenvalues: Sequence[tuple[float, float]]
    radius: float
    checkpoint: str

    @property
    def mean(self) -> Array:
        """The mean surface over the seeds."""
        return np.asarray(self.surfaces.mean(0))


def landscape_of(subject: Subject, settings: Settings, store: Store) -> Landscape:
    """Reads a run's landscape from the store, which holds all of it."""
    jobs = jobs_of(subject, settings)
    values = {kind: [store.found[job.key] for job in jobs if job.key[0] == kind] for kind in (FACTS, "point", HESSIAN)}
    facts = values[FACTS][0]
    losses = np.array([np.inf if loss is None else loss for loss in values["point"]])
    found = values[HESSIAN][0] if values[HESSIAN] else []
    return Landscape(
        name=subject.name,
        facts=facts,
        coordinates=np.array(settings.coordinates()),
        surfaces=losses.reshape(len(settings.seeds), settings.points, settings.points),
        eigenvalues=[(value, bound) for value, bound in found],
        radius=facts["norm" if settings.scale == "norm" else "change"],
        checkpoint=subject.run.checkpoint.name,
    )


def summary(landscape: Landscape) -> dict[str, Any]:
    """The numbers of the module's head, with the lowest point of the mean surface; None where the loss overflowed."""
    mean, coordinates = landscape.mean, landscape.coordinates
    lowest = np.unravel_index(int(mean.argmin()), mean.shape)
    largest, smallest = (landscape.eigenvalues[0], landscape.eigenvalues[-1]) if landscape.eigenvalues else (None, None)
    return {
        "loss": landscape.facts["loss"],
        "minimum": finite(float(mean[lowest])),
        "minimum_at": [float(coordinates[index]) for index in lowest],
        "highest": finite(float(mean.max())),
        "area": area(mean, coordinates, landscape.facts["loss"]),
        "asymmetry": _mean([asymmetry(surface) for surface in landscape.surfaces]),
        "anisotropy": _mean([anisotropy(surface, coordinates) for surface in landscape.surfaces]),
        "eigenvalues": [list(one) for one in landscape.eigenvalues[:3]],
        "smallest_eigenvalue": None if smallest is None else list(smallest),
        "curvature": None if largest is None else largest[0] * landscape.radius**2,
    }


def area(surface: Array, coordinates: Array, loss: float | None) -> float | None:
    """The share of the square, from 0 to 1, where the bilinear surface is at most 1.1 times a loss.

    Example:
        >>> coordinates = np.array([-1.0, 0.0, 1.0])
        >>> round(area(1 + np.abs(coordinates)[:, None] + 0 * coordinates, coordinates, 1.0), 2)
        0.1
    """
    if loss is None:
        return None
    fine = np.linspace(coordinates[0], coordinates[-1], _FINE)
    inside = interpolate(surface, coordinates, fine[:, None], fine[None]) <= WITHIN * loss
    weights = np.ones(_FINE)
    weights[[0, -1]] = 0.5  # points of the edge stand for half as much of the square
    return float((inside * weights[:, None] * weights).sum() / weights.sum() ** 2)


def asymmetry(surface: Array) -> float | None:
    """How much opposite directions differ, as a share of how much the surface is curved; None where it is infinite.

    Example:
        >>> line = np.array([-1.0, 0.0, 1.0])
        >>> asymmetry(line[:, None] ** 2 + line**2), asymmetry(line[:, None] ** 2 + line**2 + line)
        (0.0, 0.5)
    """
    opposite = surface[::-1, ::-1]
    if not np.isfinite(surface).all():
        return None
    centre = surface[len(surface) // 2, len(surface) // 2]
    curved = np.abs(surface + opposite - 2 * centre).sum()
    return float(np.abs(surface - opposite).sum() / curved) if curved else None


def anisotropy(surface: Array, coordinates: Array) -> float | None:
    """How unequally the surface rises with the direction; None where it does not rise, or is infinite.

    Example:
        >>> line = np.linspace(-1, 1, 101)
        >>> round(anisotropy(line[:, None] ** 2 + line**2, line), 3), round(anisotropy(line[:, None] ** 2 + 0 * line, line), 3)
        (0.0, 2.0)
    """
    if not np.isfinite(surface).all():
        return None
    angles = np.arange(_ANGLES) * np.pi / _ANGLES
    a, b = coordinates[-1] * np.cos(angles), coordinates[-1] * np.sin(angles)
    centre = surface[len(surface) // 2, len(surface) // 2]
    rises = (interpolate(surface, coordinates, a, b) + interpolate(surface, coordinates, -a, -b)) / 2 - centre
    mean = float(rises.mean())
    return float(rises.max() - rises.min()) / mean if mean > 0 else None


def interpolate(surface: Array, coordinates: Array, a: Array, b: Array) -> Array:
    """The bilinear surface at points of the square; the coordinates are evenly spaced.

    Args:
        surface: shape (points, points).
        coordinates: shape (points,).
        a: first coordinates of points.
        b: second ones; both are broadcast.
    """
    step = coordinates[1] - coordinates[0]
    last = len(coordinates) - 2
    at = [np.clip((x - coordinates[0]) / step, 0, last + 1) for x in np.broadcast_arrays(a, b)]
    (i, j) = (np.minimum(x.astype(int), last) for x in at)
    s, t = at[0] - i, at[1] - j
    with np.errstate(invalid="ignore"):  # infinite corners
        result = (1 - s) * ((1 - t) * surface[i, j] + t * surface[i, j + 1]) + s * (
            (1 - t) * surface[i + 1, j] + t * surface[i + 1, j + 1]
        )
    return np.where(np.isnan(result), np.inf, result)


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    """The values of the seeds and their mean."""
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)) if len(known) == len(values) else None, "seeds": list(values)}
