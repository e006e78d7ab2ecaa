"""The projections by the names that a config and a file have for them.

Invariant: a scheme is the name of one function of integers for ever. A projection whose function changes gets a new
scheme, and files of the old one stay readable.
"""

from __future__ import annotations

from collections.abc import Callable

from gpart.errors import GPartError
from gpart.partition import SCHEME, Groups, Partition
from gpart.projections.authors import MaterializedGroups
from gpart.projections.fastfood import Fastfood, Positions
from gpart.projections.hashing import authors_stateless, hashed

SCHEMES = {
    "partition": SCHEME,
    "hash": "gpart-hash-v1",
    "fastfood": "gpart-fastfood-v1",
    "authors-stateless": "authors-stateless",
    "authors-materialized": "authors-materialized",
}
"""For each choice of ``GPartConfig.projection`` the name of its function, which is written into every adapter file."""

_GROUPS: dict[str, Callable[[int, int, int], Groups]] = {
    "partition": Partition,
    "hash": hashed,
    "authors-stateless": authors_stateless,
    "authors-materialized": MaterializedGroups,
}


def make_projection(projection: str, size: int, d: int, seed: int) -> Groups | Fastfood:
    """The map that a config's ``projection`` names: groups of positions, or the dense one.

    Args:
        projection: a key of :data:`SCHEMES`.
        size: D, the number of adapted weights.
        d: the length of theta.
        seed: an unsigned 64-bit integer.

    Raises:
        GPartError: if a number is outside its range.

    Example:
        >>> make_projection("partition", 10, 3, 0)
        Partition(size=10, d=3, seed=0)
    """
    return Fastfood(size, d, seed) if projection == "fastfood" else _GROUPS[projection](size, d, seed)


def by_scheme(scheme: str, size: int, d: int, seed: int) -> Groups | Fastfood:
    """The map that a file names; arguments as for :func:`make_projection`.

    Raises:
        GPartError: if it is none that this version knows, or a number is outside its range.
    """
    projection = next((name for name, its in SCHEMES.items() if its == scheme), None)
    if projection is None:
        raise GPartError(f"there is no scheme {scheme!r}; this version knows {', '.join(map(repr, SCHEMES.values()))}")
    return make_projection(projection, size, d, seed)


def groups_of(made: Groups | Fastfood) -> Groups:
    """What finds a weight's numbers: the groups, or its positions in P·theta of a dense map."""
    return Positions(made.size) if isinstance(made, Fastfood) else made
