"""Where theta stands in a model: never among what other people's code iterates over, indexes or counts.

Invariant: the module that gets theta's holder as its last child is no container, and does not ask for its children itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from types import CodeType, FunctionType

from torch import nn

from gpart.errors import GPartError
from gpart.injection.modules import Adapters, plain_class
from gpart.injection.names import get_submodule

_FRAMEWORKS = ("torch.", "lightning.", "pytorch_lightning.")
"""Whose methods, as ``self.type(...)`` or ``self.parameters()``, ask for the children and give none of them to ``forward``."""

_CHILDREN = frozenset({"children", "named_children", "_modules"})
"""What a ``forward`` asks for that runs, counts or names all the children of its module."""


def home_of(model: nn.Module, layers: Iterable[str]) -> str:
    """Path of the module that gets theta's holder as its last child: the model, or what is no container below it.

    A ModuleList, ModuleDict or Sequential, and a module whose ``forward`` asks for its children, is iterated, indexed and
    counted by other people's code: theta's holder must not be one of its elements. Then the first module below it takes the
    holder, on the way to an adapted layer, that is none of these.

    Args:
        model: the adapted module.
        layers: the paths of the adapted layers, in order.

    Raises:
        GPartError: if there is none.

    Example:
        >>> home_of(nn.Sequential(nn.Linear(2, 2)), ["0"]), home_of(nn.MultiheadAttention(2, 1), ["out_proj"])
        ('0', '')
    """
    tried = []
    for layer in layers:
        parts = layer.split(".") if layer else []
        for path in (".".join(parts[:count]) for count in range(len(parts) + 1)):
            module = get_submodule(model, path)
            if not is_iterated(module):
                return path
            tried.append(f"{path or 'the model'} ({type(module).__name__})")
    raise GPartError(
        f"theta needs a module to stand in whose children nobody iterates over; on the way to the adapted layers there"
        f" are only {list(dict.fromkeys(tried))[:5]}"
    )


def is_iterated(module: nn.Module) -> bool:
    """Whether someone may iterate over a module's children, index or count them: a container, or its own ``forward``.

    >>> is_iterated(nn.ModuleList()), is_iterated(nn.Linear(2, 2))
    (True, False)
    """
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        return True
    return not _CHILDREN.isdisjoint(_asked_for(plain_class(module)))  # type: ignore[arg-type]  # a class can be hashed


@cache
def _asked_for(kind: type[nn.Module]) -> frozenset[str]:
    """The names in the code of a class's ``forward``, and of its own methods, not torch's, that these names may call."""
    names: set[str] = set()
    new = {"forward"}
    while new:
        found = [inspect.unwrap(one) for name in new if callable(one := getattr(kind, name, None))]
        methods = [one for one in found if isinstance(one, FunctionType)]
        own = [one for one in methods if one.__name__ == "forward" or not one.__module__.startswith(_FRAMEWORKS)]
        names |= new
        new = {name for one in own for name in _names(one.__code__)} - names
    return frozenset(names)


def _names(code: CodeType) -> set[str]:
    """The names in a function's code, and in that of the functions and comprehensions in it."""
    inside = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inside)


def check_elements(root: nn.Module) -> None:
    """Checks that no adapter is an element of a container, as of one that was made of the home's children since.

    Raises:
        GPartError: if one is, with the container.
    """
    for path, module in root.named_modules():
        if any(isinstance(child, Adapters) for child in module._modules.values()) and is_iterated(module):
            names = [name for name, child in module._modules.items() if isinstance(child, Adapters)]
            raise GPartError(
                f"the adapter {names[0]!r} is one of the elements of {path or 'the model'} ({type(module).__name__}), and"
                " changes what is iterated, indexed or counted there: make that container before the adapter is attached"
            )
