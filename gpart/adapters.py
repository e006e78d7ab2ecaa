"""The adapters of one model: which are active, by which weights they are summed, deleting and renaming them.

Invariant: what is done here changes no number of any adapter, nor of the base. Each adapter has a name of its own, and its
own seed, d, targets, theta and saved modules; :func:`gpart.attach` and :func:`gpart.load_adapter` make the new one the
active one.

The functions have PEFT's names where it has one; ``set_active`` is its ``set_adapter``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from gpart.adapter import GPartAdapter, get_adapters
from gpart.errors import GPartError
from gpart.injection.modules import Adapters, check_name, theta_key
from gpart.injection.names import unwrapped
from gpart.injection.surgery import rename_old_theta
from gpart.materialize.active import check_no_batch, check_switch, container_of, members, switch


def active_adapters(model: nn.Module) -> dict[str, float]:
    """The names of a model's active adapters, each with the factor of its update, in the order in which they are summed.

    Example:
        >>> active_adapters(nn.Linear(2, 2))
        {}
    """
    container = container_of(unwrapped(model))
    return {} if container is None else dict(container.active_factors)


def chosen_heads(model: nn.Module) -> str | None:
    """The adapter that was chosen by ``set_active(..., heads=...)``, if one was."""
    container = container_of(unwrapped(model))
    return None if container is None else container.heads


def add_active(model: nn.Module, name: str, before: Mapping[str, float], heads: str | None) -> None:
    """Makes an adapter active beside those that were active before it was attached.

    Raises:
        GPartError: if both have the same saved module.
    """
    others = {other: factor for other, factor in before.items() if other != name}
    set_active(model, [*others, name], [*others.values(), 1.0], heads if heads in others else None)


def set_active(
    model: nn.Module,
    names: str | Sequence[str],
    weights: Sequence[float] | None = None,
    heads: str | None = None,
) -> None:
    """Makes these adapters of a model the active ones, and no others.

        W = W0 + weights[0] P_1·theta_1 + weights[1] P_2·theta_2 + ...,  rounded once

    Their thetas and saved modules require gradients, those of the others do not: an optimizer is made after the switch.
    With no names the model is the base.

    Args:
        model: the module that the adapters were attached to.
        names: one name, or several in the order in which they are summed.
        weights: what each update is multiplied by; default 1.
        heads: whose saved modules stand in the model where several of them have saved the same. They are not summed.

    Raises:
        GPartError: if a name is not there, the numbers of names and weights differ, several adapters have a head of the
            same name and ``heads`` chooses none, the base weights are sharded and not one alone is to be active, or a
            batch of several adapters is open.

    Example:
        >>> from gpart import GPartConfig, attach
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> first = attach(model, GPartConfig(d=5, target_modules=["0"]), name="first")
        >>> second = attach(model, GPartConfig(d=7, target_modules=["2"], seed=1), name="second")
        >>> active_adapters(model)
        {'second': 1.0}
        >>> set_active(model, ["first", "second"], weights=[0.5, -1.0])
        >>> active_adapters(model)
        {'first': 0.5, 'second': -1.0}
    """
    chosen = [names] if isinstance(names, str) else list(names)
    factors = [1.0] * len(chosen) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(chosen):
        raise GPartError(f"{len(chosen)} adapters, {chosen}, and {len(factors)} weights, {factors}")
    if len(set(chosen)) < len(chosen):
        raise GPartError(f"an adapter can be active once only: {chosen}; its factor belongs in weights")
    if odd := [factor for factor in factors if not math.isfinite(factor)]:
        raise GPartError(f"weights must be finite numbers, got {odd[0]} in {factors}")
    container = _container(model, chosen)
    if container is None:
        return
    adapters = get_adapters(model)
    first = next(iter(adapters.values()))
    check_switch(container, chosen, heads)
    if first.weights.bases is not None:
        warnings.warn(
            f"the model was merged with adapters {list(container.active_factors)}: it is unmerged before {chosen} become"
            " active",
            stacklevel=2,
        )
        first.unmerge()
    switch(container, dict(zip(chosen, factors, strict=True)), heads)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Takes one adapter off a model, as its ``detach()`` does; the others stay as they are.

    Raises:
        GPartError: if it is not there.
    """
    _adapter(model, name).detach()


def rename_adapter(model: nn.Module, old: str, new: str) -> GPartAdapter:
    """Gives an adapter another name, in the model's keys and in the files that are written from now on.

    Returns:
        The adapter.

    Raises:
        GPartError: if there is none of the old name, one of the new, the new one can be no name, or a batch is open.
    """
    adapter = _adapter(model, old)
    if check_name(new) in (adapters := get_adapters(model)):
        raise GPartError(f"cannot rename adapter {old!r}: the model carries {list(adapters)} already")
    container = _container(model, [old])
    if container is None:
        raise RuntimeError("an adapter without what holds it")
    check_no_batch(container)
    names = {name: new if name == old else name for name in members(container)}
    modules = dict(container._modules)
    container._modules.clear()
    container._modules.update({names[name]: module for name, module in modules.items()})
    container.active_factors = {names[name]: factor for name, factor in container.active_factors.items()}
    container.standing = {saved: names[name] for saved, name in container.standing.items()}
    container.heads = None if container.heads is None else names[container.heads]
    adapter.name = adapter.weights.name = new
    if adapter.renaming is not None:
        adapter.renaming.remove()
        adapter.renaming = rename_old_theta(adapter.model, theta_key(new), adapter.theta_name)
    return adapter


def _container(model: nn.Module, asked: Sequence[str]) -> Adapters | None:
    container = container_of(unwrapped(model))
    if container is None and asked:
        raise GPartError(f"the model carries no adapter, so none of {list(asked)}")
    return container


def _adapter(model: nn.Module, name: str) -> GPartAdapter:
    if name not in (adapters := get_adapters(model)):
        raise GPartError(f"the model carries no adapter {name!r}; it carries {list(adapters)}")
    return adapters[name]
