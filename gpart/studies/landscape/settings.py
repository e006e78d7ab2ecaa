"""What is measured around a trained point, and the points of the grid.

Invariant: the grid is symmetric bit by bit, and grids of different fineness share the points that they have in common, so
that what was measured for one serves the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpart.errors import GPartError
from gpart.studies.landscape.directions import Normalise, Scale


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Raises:
        GPartError: if a setting is out of its range.
    """

    rows: int | None = 256
    """Validation rows at least, rounded up to whole batches; None for all."""

    points: int = 11
    """Points along each side of the grid, an odd number, so that the trained point is one of them."""

    span: float = 1.0
    """The grid goes from -span to span, where 1 is the norm of the trained vector (see ``scale``)."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each gives two random directions."""

    scale: Scale = "norm"
    """What a direction's norm is: the trained vector's, or that of its change since training began."""

    normalise: Normalise = "whole"
    """Whether a direction is scaled as a whole, or each of its filters to the trained one's norm."""

    steps: int = 20
    """Lanczos steps for the Hessian's eigenvalues; 0 leaves them out."""

    def __post_init__(self) -> None:
        if self.points < 3 or self.points % 2 == 0:
            raise GPartError(f"points must be an odd number from 3 on, got {self.points}")
        if not 0 < self.span < float("inf"):
            raise GPartError(f"span must be more than 0, got {self.span}")
        if self.rows is not None and self.rows < 1:
            raise GPartError(f"rows must be at least 1, got {self.rows}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise GPartError(f"seeds must be different numbers, at least one, got {list(self.seeds)}")
        if self.steps < 0:
            raise GPartError(f"steps must be at least 0, got {self.steps}")

    def coordinates(self) -> list[float]:
        """The grid's coordinates along one direction, in units of the direction.

        Example:
            >>> Settings(points=5).coordinates()
            [-1.0, -0.5, 0.0, 0.5, 1.0]
        """
        sides = self.points - 1
        return [self.span * ((2 * index - sides) / sides) for index in range(self.points)]
