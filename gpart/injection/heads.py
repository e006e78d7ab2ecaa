"""Whose saved modules stand in the model where several adapters have their own.

Invariant: a parameter of ``modules_to_save``, and a buffer that training has changed, is in one of two places. While its
adapter is active it stands in the model under the base's name, else in a tree of the same names below theta's holder
(``gpart.<name>.saved.<parameter>``), where what moves, casts and saves the model finds it. With no such adapter active the
base's own first values stand in the model; NaN, where it was on the meta device then and had none.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gpart.injection.forgotten import mark_as
from gpart.injection.modules import SAVED, Theta
from gpart.injection.names import get_parameter, get_submodule, split_name
from gpart.injection.snapshot import Snapshot, put_buffers
from gpart.injection.tensors import has_gradient

Place = tuple[str, str]
"""Module path and attribute."""


def laid_by(holder: Theta) -> dict[str, Tensor]:
    """What of an adapter does not stand in the model, by its name there: parameters and buffers."""
    tree = holder._modules.get(SAVED)
    return {} if tree is None else {**dict(tree.named_parameters()), **dict(tree.named_buffers())}


def lay_by(model: nn.Module, holder: Theta, snapshot: Snapshot, names: Iterable[str]) -> None:
    """Takes an active adapter's saved parameters out of the model, puts the base's there, and copies changed buffers.

    Args:
        model: the adapted module.
        holder: theta's.
        snapshot: of the model before the adapter was attached.
        names: of those of its saved parameters that stand in the model.
    """
    own = {name: get_parameter(model, name) for name in names}
    changed = snapshot.moved_buffers(model)
    if not own and not changed:
        return
    # All that takes memory comes first.
    first = {name: _first(value, snapshot.first(name)) for name, value in own.items()}
    for name, value in changed.items():
        put_buffer(holder, name, value)
    put_parameters(model, first, snapshot.owners)
    tree = tree_of(holder)
    for name, value in own.items():
        value.requires_grad_(False)
        value.grad = None
        _owner(tree, name)._parameters[split_name(name)[1]] = value  # type: ignore[assignment]  # it is a Parameter


def take_up(model: nn.Module, holder: Theta, snapshot: Snapshot, names: Container[str], buffers: bool) -> bool:
    """Puts an adapter's own into the model again.

    Args:
        model: the adapted module.
        holder: theta's.
        snapshot: of the model before the adapter was attached.
        names: of its saved parameters that are to stand in the model, and be trained; the others stay where they are.
        buffers: whether its buffers are to.

    Returns:
        Whether it had buffers of its own.
    """
    tree = holder._modules.get(SAVED)
    if tree is None:
        return False
    own = {name: value for name, value in tree.named_parameters() if name in names}
    kept = {name: value for name, value in tree.named_parameters() if name not in names}
    changed = dict(tree.named_buffers())
    put_parameters(model, own, snapshot.owners)
    for value in own.values():
        value.requires_grad_(has_gradient(value))
    if buffers:
        put_buffers(model, changed)
    del holder._modules[SAVED]
    for name, value in kept.items():
        _owner(tree_of(holder), name)._parameters[split_name(name)[1]] = value
    return bool(changed)


def put_parameters(model: nn.Module, values: Mapping[str, Tensor], owners: Mapping[str, Sequence[Place]]) -> None:
    """Puts other Parameters in the places of those of these names.

    Args:
        model: the adapted module.
        values: by name; each is a Parameter.
        owners: by name, every (module path, attribute) that holds it.
    """
    for name, value in values.items():
        for path, attribute in owners[name]:
            setattr(get_submodule(model, path), attribute, value)  # and what a module does beside, as an LSTM's list


@torch.inference_mode(mode=False)
def put_buffer(holder: Theta, name: str, value: Tensor) -> None:
    """Keeps a copy of a buffer's values for an adapter whose own do not stand in the model."""
    _owner(tree_of(holder), name)._buffers[split_name(name)[1]] = value.detach().clone()


def drop_buffers(holder: Theta) -> None:
    """Forgets the values of buffers that :func:`put_buffer` has kept."""
    tree = holder._modules.get(SAVED)
    for module in () if tree is None else tree.modules():
        module._buffers.clear()


def tree_of(holder: Theta) -> nn.Module:
    """The tree of what does not stand in the model; a new one where there is none."""
    if SAVED not in holder._modules:
        holder.add_module(SAVED, nn.Module())
    tree = holder._modules[SAVED]
    if tree is None:
        raise RuntimeError(f"{SAVED} of theta's holder is no module")
    return tree


@torch.inference_mode(mode=False)  # what is made within it can never be trained
def _first(value: Tensor, first: Tensor) -> nn.Parameter:
    if first.is_meta and not value.is_meta:
        # There were no first values yet: what shows it, rather than what looks like a head.
        missing = torch.full_like(value, torch.nan if has_gradient(value) else 0, requires_grad=False)
        return nn.Parameter(missing, requires_grad=False)
    return mark_as(nn.Parameter(first.to(value.device, value.dtype, copy=True), requires_grad=False), value)


def _owner(tree: nn.Module, name: str) -> nn.Module:
    """The module of a tree that holds what has this name; made where there is none."""
    module, path = tree, split_name(name)[0]
    for part in path.split(".") if path else []:
        found = module._modules.get(part)
        if found is None:
            found = nn.Module()
            module._modules[part] = found
        module = found
    return module
