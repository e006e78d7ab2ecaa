"""What the settings of every bench have to fulfil."""

from __future__ import annotations

from collections.abc import Sequence

from gpart.errors import GPartError


def check_numbers(settings: object, **least: int) -> None:
    """Checks settings that are whole numbers against the least that each may be; None is no number and passes.

    Raises:
        GPartError: if one is below, with both.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise GPartError(f"{name} must be a whole number, {bound} or more, got {value}")


def check_lists(
    methods: Sequence[str], parts: Sequence[str], shapes: Sequence[tuple[int, int]], known: Sequence[str]
) -> None:
    """Checks that each list has something in it, and that there are such parts.

    Raises:
        GPartError: if not, with what was asked for and what there is.
    """
    for part in parts:
        if part not in known:
            raise GPartError(f"there is no part {part!r}; there are {', '.join(known)}")
    for name, values in (("methods", methods), ("parts", parts), ("shapes", shapes)):
        if not values:
            raise GPartError(f"{name} must name at least one, got []")
