"""Momentum teachers: deep copies of the adapted network whose parameters follow it, as in BYOL, MoCo and DINO.

Invariant: a copy carries the same groups as the network, and a theta of its own in the same place among its parameters.
So an average over ``zip(network.parameters(), copy.parameters())`` averages the thetas, and with them the weights:

    m (W0 + P·theta_copy) + (1 - m) (W0 + P·theta) = W0 + P·(m theta_copy + (1 - m) theta).

The frozen weights of a copy keep the network's bits: an average of equal numbers is rounded, and not the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import permutations

import torch
from lightning.pytorch import LightningModule
from torch import nn

from gpart.adapter import GPartAdapter, attach, get_adapters
from gpart.callbacks.networks import children_of, submodule
from gpart.errors import GPartError
from gpart.injection.modules import plain_class
from gpart.injection.names import get_parameter, get_submodule, named_modules, named_parameters, unwrapped


def adapt_copies(adapter: GPartAdapter, pl_module: LightningModule, paths: Iterable[str]) -> list[GPartAdapter]:
    """Attaches the adapter to copies of its network, or recognises that they carry it, as copies made since do.

    Args:
        adapter: the network's.
        pl_module: the LightningModule.
        paths: of the copies in it.

    Returns:
        The copies' adapters. Their thetas start where the network's is, and are not trained by gradients.

    Raises:
        GPartError: if one is no copy: other frozen weights, or an adapter with other settings.
    """
    return [_adapted(adapter, submodule(pl_module, path, "copies"), path) for path in paths]


def _adapted(adapter: GPartAdapter, copy: nn.Module, path: str) -> GPartAdapter:
    attached = get_adapters(copy).get(adapter.name)
    if attached is None:
        if unlike := differing(adapter.model, copy, adapter.plan.frozen):
            raise GPartError(
                f"copies={path!r} is no copy of the adapted network: {unlike[:3]} differ, so the average of both has no"
                " place in W0 + P·theta. Make it by copy.deepcopy, or leave it out and train it in full"
            )
        flags = {name: value.requires_grad for name, value in named_parameters(copy).items()}
        attached = attach(copy, adapter.config, adapter.name, adapter.memory.indices, adapter.memory.weights)
        for name in adapter.plan.saved:
            get_parameter(copy, name).requires_grad_(flags[name])
        with torch.no_grad():
            attached.theta.copy_(adapter.values)
            if adapter.source is not None:  # its head and buffers came from there too, after the copy was made
                for name, value in adapter.saved_parameters().items():
                    get_parameter(copy, name).copy_(value)
                attached.put_buffers(adapter.changed_buffers())
    if different := attached.config.differences(adapter.config):
        raise GPartError(f"copies={path!r} carries an adapter with other settings: {'; '.join(different)}")
    attached.theta.requires_grad_(False)
    return attached


@torch.no_grad()
def keep_frozen(adapter: GPartAdapter, copies: Iterable[GPartAdapter]) -> None:
    """Gives the copies the network's frozen weights again, which the average of a step has rounded.

    What was merged or taken off is left alone: its weights are its own W0 + P·theta.
    """
    following = [copy for copy in copies if copy.attached and not copy.merged] if adapter.attached else []
    base = adapter.base_parameters() if following else {}
    for copy in following:
        for name, value in base.items():
            get_parameter(copy.model, name).copy_(value)


def merge_copies(copies: Iterable[GPartAdapter]) -> None:
    """Leaves plain modules where the copies were; what follows by an average alone still takes no gradient."""
    for copy in [one for one in copies if one.attached]:
        follows = not any(value.requires_grad for value in copy.model.parameters())
        copy.merge_and_unload()
        if follows:  # one that was made of the adapted network has that one's flags in mind
            copy.model.requires_grad_(False)


def unnamed_copies(
    pl_module: LightningModule, path: str, adapter: GPartAdapter, copies: Collection[str]
) -> Iterator[str]:
    """What to say of deep copies that the callback was not told of; before the first step.

    Args:
        pl_module: the LightningModule.
        path: of the adapted network in it, ``""`` for the whole.
        adapter: the adapter.
        copies: paths that are known to be copies.
    """
    children = {name: unwrapped(child) for name, child in pl_module.named_children()}
    if not path:
        adapted = children_of(weight.name for weight in adapter.plan.weights)
        meant = [name for name in children if name in adapted]
        for one, other in permutations(meant, 2):
            copy = _copy_in(other, children[other], children[one])
            if copy is None or (copy == other and meant.index(other) < meant.index(one)):
                continue  # of two that are copies of each other, the second follows the first
            yield (
                f"the settings match {one!r} and {copy!r}, which hold the same numbers: one theta changes both, by"
                f" different groups. If {copy!r} is a copy that follows {one!r} (an average, a momentum teacher), say"
                f" module={one!r}, copies=[{copy!r}]"
            )
        return
    for name, child in children.items():
        if name == path.partition(".")[0] or (copy := _copy_in(name, child, adapter.model)) is None:
            continue
        if copy not in copies and adapter.name not in get_adapters(get_submodule(pl_module, copy)):
            yield (
                f"{copy!r} holds the same numbers as the adapted network {path!r}. If it follows it (an average, a"
                f" momentum teacher), say copies=[{copy!r}]: without it an average over both networks' parameters leaves"
                " theta out. If it stays as it is (a reference), all is well"
            )


def _copy_in(name: str, child: nn.Module, network: nn.Module) -> str | None:
    """The path of a copy of a network: that of a child of the LightningModule, or of what it wraps; else None."""
    found = next((path for path, module in named_modules(child) if _alike(network, module)), None)
    if found is None:
        return None
    return f"{name}.{found}" if found else name


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are of one class and have the same numbers in what is frozen in the first."""
    frozen = [name for name, value in named_parameters(one).items() if not value.requires_grad]
    return plain_class(one) is plain_class(other) and bool(frozen) and not differing(one, other, frozen)


def differing(one: nn.Module, other: nn.Module, names: Iterable[str]) -> list[str]:
    """The names of those parameters that two modules do not have alike; what both share is no copy, and not alike.

    >>> layer = nn.Linear(2, 2)
    >>> differing(layer, nn.Linear(2, 2), ["weight"]), differing(layer, layer, ["weight"])
    (['weight'], ['weight'])
    """
    first, second = named_parameters(one), named_parameters(other)
    return [name for name in names if name not in second or not _equal(first[name], second[name])]


def _equal(one: nn.Parameter, other: nn.Parameter) -> bool:
    same_kind = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    if one is other or not same_kind or one.is_meta:
        return False
    return bool(torch.equal(one.detach(), other.detach()))
