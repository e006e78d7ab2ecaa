"""Which adapters one trainer may train at once: of one network, or of networks that are apart."""

from __future__ import annotations

from typing import Protocol

from lightning.pytorch.strategies import Strategy

from gpart.callbacks.sharding.strategies import shards
from gpart.errors import GPartError


class Adapts(Protocol):
    """What of a GPartCallback this is about."""

    module: str | None
    copies: tuple[str, ...]

    @property
    def name(self) -> str:
        """The adapter's name."""

    @property
    def checkpoints(self) -> str:
        """What its checkpoints hold."""


def refuse_together(one: Adapts, other: Adapts, strategy: Strategy) -> None:
    """Checks that two adapters may be trained at once.

    Raises:
        GPartError: if they have one name, one's network may be inside the other's, or what is asked for besides is for one
            adapter alone.
    """
    both = f"{one.name!r} and {other.name!r}"
    if other.name == one.name:
        raise GPartError(f"two GPartCallbacks have the name {one.name!r}: give one another, by name=...")
    apart = other.module != one.module
    if apart and overlap(one.module, other.module):
        raise GPartError(
            f"the adapters {both} are for modules that may contain each other, {one.module!r} and {other.module!r}: name"
            " one module for both, or two that are apart"
        )
    if shards(strategy) or one.copies or other.copies:
        raise GPartError(f"adapters {both} at once: not with a sharded model, nor with copies")
    if apart and "merged" in (one.checkpoints, other.checkpoints):
        raise GPartError(
            f"checkpoints='merged' holds one adapter's W0 + P·theta, and {both} are two: write adapters, and merge at the"
            " end, by merge_at_end=True"
        )


def overlap(one: str | None, other: str | None) -> bool:
    """Whether one of two paths of submodules leads into the other; None may be any.

    >>> overlap("net", "net.head"), overlap("net", "network"), overlap(None, "net")
    (True, False, True)
    """
    if not one or not other:
        return True
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
