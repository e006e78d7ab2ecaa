"""Putting an adapter into a model, and taking it out again: each step beside its undoing.

Invariants: :func:`install` freezes every parameter of the model but those of ``modules_to_save``, and changes no stored
number and no name. :func:`wire` with None gives every layer its class back and :func:`remove` takes the adapter's child away;
what the flags and values were is :class:`gpart.injection.snapshot.Snapshot`'s to restore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.injection.forgotten import mark_as, randomly_initialised, refuse_resized
from gpart.injection.heads import Place, put_parameters
from gpart.injection.modules import CONTAINER, Adapters, Readers, Theta, WeightReader, check_releasable, set_readers
from gpart.injection.names import READERS, get_parameter, get_submodule, is_adapted, named_modules
from gpart.injection.targets import AdaptedWeight, Plan
from gpart.injection.tensors import has_gradient

Hooks = tuple[Callable[[nn.Module, Any], None], Callable[[nn.Module, Any, Any], None]]
"""What is called when a module is entered and when it is left."""


def check_installable(model: nn.Module, config: GPartConfig, name: str, plan: Plan, home: nn.Module) -> None:
    """Checks that a plan that was made for this model may be carried out, with theta's holder in ``home``.

    Raises:
        GPartError: if a parameter that Transformers has just initialised at random would be frozen, an embedding
            that was resized after loading, or an adapter of a module inside the model.
    """
    refuse_resized(model, plan.frozen, config.modules_to_save)
    if forgotten := randomly_initialised(model, plan.frozen):
        raise GPartError(
            f"modules_to_save={config.modules_to_save!r} leaves out {forgotten}, which Transformers has just initialised"
            " at random since the checkpoint has none: name their module in modules_to_save, or they stay random"
        )
    if hasattr(home, CONTAINER):
        raise GPartError(
            f"cannot attach adapter {name!r}: the attribute {CONTAINER!r} of {type(home).__name__} already holds"
            f" {type(getattr(home, CONTAINER)).__name__}"
        )
    inside = [path for path, module in named_modules(model) if path and isinstance(module, Theta)]
    if inside:
        raise GPartError(
            f"cannot attach adapter {name!r}: it would freeze {inside}, adapters of modules inside the model"
        )


def install(
    model: nn.Module, plan: Plan, name: str, holder: Theta, home: nn.Module, owners: Mapping[str, Sequence[Place]]
) -> Adapters:
    """Freezes the base, gives the adapter saved parameters to train, and adds theta's holder as the last child of ``home``.

    The saved parameters are the model's own for the first adapter, and copies of the base's for a further one.
    """
    for parameter in (get_parameter(model, frozen) for frozen in plan.frozen):
        parameter.requires_grad_(False)
    container = home._modules.get(CONTAINER)
    if isinstance(container, Adapters):
        own = {saved: get_parameter(model, saved) for saved in plan.saved}
        with torch.inference_mode(mode=False):  # what is made within it can never be trained
            copies = {saved: mark_as(nn.Parameter(value.detach().clone()), value) for saved, value in own.items()}
        put_parameters(model, copies, owners)
        container[name] = holder
    else:
        container = Adapters({name: holder}).train(home.training)
        home.add_module(CONTAINER, container)
    for parameter in (get_parameter(model, saved) for saved in plan.saved):
        parameter.requires_grad_(has_gradient(parameter))
    container.standing |= dict.fromkeys(plan.saved, name)
    if home is not model:
        model.__dict__[CONTAINER] = container  # ``model.gpart`` is there, and is none of its elements
    return container


def remove(model: nn.Module, name: str, home: nn.Module) -> None:
    """Takes theta's holder away, and with the last one what held them; no layer may read from the adapter any more."""
    container = home._modules[CONTAINER]
    if isinstance(container, Adapters):
        del container[name]
        container.active_factors.pop(name, None)
        container.standing = {saved: other for saved, other in container.standing.items() if other != name}
    if not container:
        del home._modules[CONTAINER]
        model.__dict__.pop(CONTAINER, None)


def wire(model: nn.Module, readers: Mapping[Place, tuple[WeightReader, AdaptedWeight] | None]) -> None:
    """Makes layers read parameters from these readers; where that is None, their own parameter again.

    Args:
        model: the adapted module.
        readers: by (module path, attribute).

    Raises:
        GPartError: if something has changed the class of a layer since; nothing is changed then.
    """
    for path, its in check_wirable(model, readers).items():
        set_readers(get_submodule(model, path), its)


def check_wirable(
    model: nn.Module, readers: Mapping[Place, tuple[WeightReader, AdaptedWeight] | None]
) -> dict[str, Readers]:
    """Checks that :func:`wire` can be done.

    Returns:
        By path, what each layer is to have.

    Raises:
        GPartError: if something has changed the class of a layer since.
    """
    layers: dict[str, Readers] = {}
    for (path, attribute), reader in readers.items():
        if path not in layers:
            layers[path] = dict(get_submodule(model, path).__dict__.get(READERS, {}))
        layers[path].pop(attribute, None) if reader is None else layers[path].update({attribute: reader})
    for path, its in layers.items():
        module = get_submodule(model, path)
        if READERS in module.__dict__ and tuple(module.__dict__[READERS]) != tuple(its):
            check_releasable(module, path)
    return layers


@contextmanager
def laid_aside(model: nn.Module, home: nn.Module) -> Iterator[None]:
    """Within it the model has no adapters and no adapted layers, so that one more can be planned as if it were the first.

    No adapter may be active.

    Raises:
        GPartError: if something has changed the class of a layer since.
    """
    container, place = home._modules.pop(CONTAINER), model.__dict__.pop(CONTAINER, None)
    readers: list[tuple[nn.Module, Readers]] = []
    try:
        layers = [(path, module) for path, module in named_modules(model) if is_adapted(module)]
        for path, module in layers:
            check_releasable(module, path)
        readers += [(module, module.__dict__[READERS]) for _, module in layers]
        for module, _ in readers:
            set_readers(module, {})
        yield
    finally:
        for module, its in readers:
            set_readers(module, its)
        home._modules[CONTAINER] = container
        if place is not None:
            model.__dict__[CONTAINER] = place


def rename_old_theta(model: nn.Module, old: str, new: str) -> RemovableHandle:
    """Loads theta from where it stood before 0.2: at the end of every adapted module, of containers too."""
    handle: RemovableHandle = model.register_load_state_dict_pre_hook(partial(_rename, old, new))  # type: ignore[no-untyped-call]  # torch has no types here
    return handle


def _rename(old: str, new: str, _module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if prefix + old in state:
        state[prefix + new] = state.pop(prefix + old)


def add_hooks(model: nn.Module, plan: Plan, forward: Hooks, layer: Hooks) -> list[RemovableHandle]:
    """Calls ``layer`` around each adapted layer, and ``forward`` around every module that contains one."""
    layers = _layers(model, plan)
    handles = []
    for module in _containers(model, plan):
        enter, leave = layer if id(module) in layers else forward
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles


def remove_hooks(handles: list[RemovableHandle]) -> None:
    """Undoes :func:`add_hooks`."""
    for handle in handles:
        handle.remove()
    handles.clear()


def _owners(plan: Plan) -> list[str]:
    return list(dict.fromkeys(path for weight in plan.weights for path, _ in weight.owners))


def _layers(model: nn.Module, plan: Plan) -> set[int]:
    """The modules that read adapted weights when they are run."""
    owners = set(_owners(plan))
    # MultiheadAttention reads its output projection's weight itself, and does not call it.
    parents = {path.rpartition(".")[0] for path in owners}
    owners |= {path for path in parents if isinstance(get_submodule(model, path), nn.MultiheadAttention)}
    return {id(get_submodule(model, path)) for path in owners}


def _containers(model: nn.Module, plan: Plan) -> Iterable[nn.Module]:
    """The owners of adapted weights and every module that contains one, each once."""
    above = {path.rsplit(".", count)[0] for path in _owners(plan) for count in range(path.count(".") + 1)} | {""}
    return {id(module): module for module in (get_submodule(model, path) for path in sorted(above))}.values()
