"""What is measured of a subject: at each end of training its Jacobian, along it the distances, and what decay does.

Invariant: every number comes from the method's map and its vectors alone, by a fixed seed, so that the same files give the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.studies.counting.params import Settings as Sizes
from gpart.studies.isometry.estimate import estimate
from gpart.studies.isometry.maps import Linear, Map
from gpart.studies.isometry.spectrum import Spectrum
from gpart.studies.isometry.subjects import Subject

Tell = Callable[[str, int, int], None]
"""Is told what is measured, and how far it is, of how far."""

DIRECTIONS = 4
"""Random ones, of which the mean length is measured beside the spectrum."""


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Raises:
        GPartError: if a number is outside its range.
    """

    sizes: Sizes = field(default_factory=Sizes)
    """The methods' sizes on an architecture."""

    steps: int = 80
    """Of Lanczos, from each start."""

    starts: int = 2
    """Of Lanczos."""

    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 2), ("starts", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise GPartError(f"{name} must be {least} or more, got {value}")


@dataclass(frozen=True)
class Local:
    """The Jacobian at a point."""

    step: int
    spectrum: Spectrum
    stretch: float
    """‖J·x‖ / ‖x‖, the mean over random x, by products with J: it has to be near the spectrum's rms."""


@dataclass(frozen=True)
class Moved:
    """How far a point is from the start, and from the base."""

    step: int
    vector: float
    """‖theta - theta_start‖."""
    weights: float
    """‖W - W_start‖."""
    base: float
    """‖W - W0‖."""

    @property
    def ratio(self) -> float | None:
        """‖W - W_start‖ / ‖theta - theta_start‖; None at the start itself."""
        return self.weights / self.vector if self.vector else None


@dataclass(frozen=True)
class Row:
    """All that is measured of a subject."""

    name: str
    method: str
    trained: int
    size: int
    training: dict[str, Any]
    ends: tuple[Local, ...]
    """At the first and, where training moved on, at the last point."""
    path: tuple[Moved, ...]
    degree: float
    """See :func:`decay_degree`."""

    @property
    def pull(self) -> float:
        """How much of W - W0 a decay step of AdamW takes, over how far a random step of theta moves W: degree / rms.

        It is 1 for GPart. Two methods whose rates are such that a step moves the weights as far are pulled back to W0 as
        much if their λ is divided by this.
        """
        return self.degree / self.ends[-1].spectrum.rms

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "method": self.method,
            "trained": self.trained,
            "D": self.size,
            "training": self.training,
            "ends": [{"step": one.step, "stretch": one.stretch, **one.spectrum.to_json()} for one in self.ends],
            "path": [{**asdict(one), "ratio": one.ratio} for one in self.path],
            "decay_degree": self.degree,
            "pull": self.pull,
        }


def measure(subject: Subject, settings: Settings, tell: Tell) -> Row:
    """Measures a subject."""
    made, points = subject.trainable.map, subject.points
    start = made.delta(points[0].vector)
    path = []
    for point in points:
        update = made.delta(point.vector)
        moved = float((point.vector - points[0].vector).norm()), float((update - start).norm())
        path.append(Moved(point.step, *moved, float(update.norm())))
    ends: list[Local] = []
    for place in sorted({0, len(points) - 1}):
        step, vector = points[place].step, points[place].vector
        if ends and isinstance(made, Linear):
            ends.append(replace(ends[0], step=step))  # it is its own Jacobian everywhere
            continue
        title = f"{subject.name}, step {step}"

        def shown(done: int, total: int, title: str = title) -> None:
            tell(title, done, total)

        shown(0, 1)
        known = made.spectrum(vector)
        if known is None:
            known = estimate(made, vector, settings.steps, settings.starts, settings.seed, shown)
        ends.append(Local(step, known, stretch(made, vector, settings.seed)))
        shown(1, 1)
    return Row(
        subject.name,
        subject.trainable.method,
        len(points[0].vector),
        made.size,
        dict(subject.training),
        tuple(ends),
        tuple(path),
        decay_degree(made, points[-1].vector, settings.seed),
    )


def stretch(made: Map, vector: Tensor, seed: int) -> float:
    """‖J·x‖ / ‖x‖ at ``vector``: the root of the mean square over random x."""
    generator = torch.Generator().manual_seed(seed)
    squares = []
    for _ in range(DIRECTIONS):
        direction = torch.randn(len(vector), generator=generator, dtype=vector.dtype)
        squares.append(float(made.push(vector, direction).norm() / direction.norm()) ** 2)
    return math.sqrt(sum(squares) / DIRECTIONS)


def decay_degree(made: Map, vector: Tensor, seed: int, rate: float = 1e-2, decay: float = 0.1) -> float:
    """How ‖W - W0‖ goes with a decay step: one step of AdamW with a gradient of 0, which leaves (1 - rate·decay)·theta.

    The update's norm is then multiplied by (1 - rate·decay)^degree: 1 for a linear map, 2 for a product of two
    trained factors.

    Args:
        made: the map.
        vector: where; if there is no update there, as at the start of LoRA, it is moved in a random direction first.
        seed: of that.
        rate: AdamW's learning rate.
        decay: its ``weight_decay``.
    """
    before = float(made.delta(vector).norm())
    if before == 0:
        generator = torch.Generator().manual_seed(seed)
        vector = vector + 0.01 * torch.randn(len(vector), generator=generator, dtype=vector.dtype)
        before = float(made.delta(vector).norm())
    parameter = torch.nn.Parameter(vector.clone())
    parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW([parameter], lr=rate, weight_decay=decay).step()
    return math.log(float(made.delta(parameter.detach()).norm()) / before) / math.log(1 - rate * decay)
