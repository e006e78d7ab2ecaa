"""The two packages that Lightning comes as: ``lightning`` and ``pytorch_lightning`` (with ``lightning_fabric``).

They are copies of each other and share no class, so that an isinstance check with one's class fails on the other's objects.
Here both are meant wherever one is named.

Invariant: nothing is imported that the user has not imported. An object's class stands in a module that is in
``sys.modules``, under the same name but for the package's.
"""

from __future__ import annotations

import sys
from typing import Any, TypeGuard, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule
from lightning_utilities.core.overrides import is_overridden as overridden_from

T = TypeVar("T")

_TWINS = {"lightning.pytorch.": "pytorch_lightning.", "lightning.fabric.": "lightning_fabric."}


def both(*classes: type[Any]) -> tuple[type[Any], ...]:
    """Classes of ``lightning``, and those of the same names in ``pytorch_lightning``, where that is imported.

    >>> [cls.__module__.split(".")[0] for cls in both(LightningModule)][0]
    'lightning'
    """
    twins = [twin for cls in classes if (twin := _twin(cls)) is not None]
    return (*classes, *twins)


def is_a(value: object, *classes: type[T]) -> TypeGuard[T]:
    """As isinstance, whichever package the object's class comes from; the classes are those of ``lightning``.

    >>> is_a(LightningModule(), LightningModule)
    True
    """
    return isinstance(value, both(*classes))


def is_overridden(method: str, module: LightningModule | LightningDataModule) -> bool:
    """Whether a LightningModule or a LightningDataModule has this method of its own.

    >>> is_overridden("setup", LightningModule())
    False
    """
    parent = next(cls for cls in both(LightningModule, LightningDataModule) if isinstance(module, cls))
    return bool(overridden_from(method, module, parent))


class OfBoth:
    """Makes a class of ours, when it is used, a subclass of the other package's class too.

    A Trainer accepts one callback or plugin, and its command line a class, by isinstance and issubclass. The hooks that ours
    leaves out are the empty ones of ``lightning``.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Looks first whether the other package has been imported since."""
        for one in cls.__mro__:
            bases = [twin for base in one.__bases__ if (twin := _twin(base)) and twin not in one.__mro__]
            if bases and issubclass(one, OfBoth):
                one.__bases__ = (*one.__bases__, *bases)
        return super().__new__(cls)


def _twin(cls: type[Any]) -> type[Any] | None:
    for ours, other in _TWINS.items():
        if cls.__module__.startswith(ours):
            module = sys.modules.get(other + cls.__module__[len(ours) :])
            return getattr(module, cls.__name__, None)
    return None
