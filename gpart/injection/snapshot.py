"""What detach needs to put a model back: flags, and the first values of heads and buffers.

Invariant: taken before anything is changed; it holds copies of the saved modules' and the buffers' values only, never
of a frozen weight, which nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gpart.injection.names import (
    get_buffer,
    get_parameter,
    get_submodule,
    named_buffers,
    named_modules,
    named_parameters,
    split_name,
)
from gpart.injection.targets import Plan
from gpart.injection.tensors import same_bits


class Snapshot:
    """The state of a model before attach."""

    def __init__(self, model: nn.Module, plan: Plan, first: Snapshot | None = None) -> None:
        """``first`` is that of the first adapter on this model, which has seen the flags."""
        flags = {name: value.requires_grad for name, value in named_parameters(model).items()}
        self._requires_grad: dict[str, bool] = flags if first is None else first._requires_grad
        self._saved = {name: get_parameter(model, name).detach().clone() for name in plan.saved}
        self._buffers = {name: value.detach().clone() for name, value in named_buffers(model).items()}
        persistent = _persistent(model)
        self._persistent = [name for name in self._buffers if name in persistent]
        self.owners = _owners(model, plan.saved)
        """Where each saved parameter stands: every (module path, attribute) that holds it."""

    def first(self, name: str) -> Tensor:
        """The first value of a saved parameter or a buffer."""
        return self._saved[name] if name in self._saved else self._buffers[name]

    def changed_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """The persistent buffers that are not what they were."""
        persistent = _persistent(model)
        return {
            name: value
            for name, value in named_buffers(model).items()
            if name in persistent and not _same(value, self._buffers.get(name))
        }

    def changed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of some buffers' values, wherever they are from, that are not the first ones."""
        return {name: value for name, value in values.items() if not _same(value, self._buffers.get(name))}

    def moved_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """As :meth:`changed_buffers`, of those that were there at first; without a walk through the model."""
        live = {name: get_buffer(model, name) for name in self._persistent if not self._buffers[name].is_meta}
        return {name: value for name, value in live.items() if not _same(value, self._buffers[name])}

    def restore_flags(self, model: nn.Module) -> None:
        """requires_grad of every parameter."""
        there = named_parameters(model, remove_duplicate=False)
        for name, flag in self._requires_grad.items():
            if name in there:  # a head may have been cut off since
                there[name].requires_grad_(flag)

    def restore_buffers(self, model: nn.Module) -> None:
        """The first values of the buffers."""
        there = named_buffers(model)
        # Of one that is left out there were no first values then, or its module has gone.
        kept = {name: value for name, value in self._buffers.items() if name in there and not value.is_meta}
        put_buffers(model, kept)

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """The first values of heads and buffers; a head that was replaced by one of another shape, or cut off, is left."""
        there = named_parameters(model, remove_duplicate=False)
        for name, value in self._saved.items():
            if name not in there:
                continue
            if not value.is_meta and there[name].shape == value.shape:
                there[name].copy_(value)
            there[name].grad = None
        self.restore_buffers(model)


Gradients = list[tuple[Tensor, bool, Tensor | None]]
"""Parameters, each with its ``requires_grad`` and its ``grad``."""


def gradients_of(model: nn.Module) -> Gradients:
    """What a switch to other adapters takes from parameters, for :func:`put_gradients` after the switch back."""
    return [(value, value.requires_grad, value.grad) for value in model.parameters()]


def put_gradients(gradients: Gradients) -> None:
    """Puts back what :func:`gradients_of` has found."""
    for value, flag, grad in gradients:
        if value.requires_grad != flag:
            value.requires_grad_(flag)
        if value.grad is not grad:
            value.grad = grad


@torch.no_grad()
def put_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copies values into a model's buffers.

    One of another shape takes the buffer's place: its module has made it anew, such as a table of positions that grows
    with the longest text. So does one for a buffer that was expanded, into which nothing can be written.
    """
    for name, value in values.items():
        buffer = get_buffer(model, name)
        if buffer.shape == value.shape and not _is_expanded(buffer):
            buffer.copy_(value)
            continue
        if _same(buffer, value):
            continue
        path, attribute = split_name(name)
        with torch.inference_mode(mode=False):  # what is made within it can never be trained with
            get_submodule(model, path)._buffers[attribute] = value.to(buffer, copy=True)


def _persistent(model: nn.Module) -> set[str]:
    """The names of the buffers that a state_dict has; it is not asked, since a project may have one of its own."""
    return {
        f"{path}.{attribute}" if path else attribute
        for path, module in named_modules(model)
        for attribute, _ in module._buffers.items()  # a scripted module has no other way through them
        if attribute not in module._non_persistent_buffers_set
    }


def _owners(model: nn.Module, names: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    found: dict[int, list[tuple[str, str]]] = {id(get_parameter(model, name)): [] for name in names}
    for path, module in named_modules(model) if found else ():
        for attribute, value in module._parameters.items():
            if value is not None and id(value) in found:
                found[id(value)].append((path, attribute))
    return {name: found[id(get_parameter(model, name))] for name in names}


def _is_expanded(value: Tensor) -> bool:
    return value.layout == torch.strided and any(
        size > 1 and step == 0 for size, step in zip(value.shape, value.stride(), strict=True)
    )


def _same(value: Tensor, first: Tensor | None) -> bool:
    if first is None or first.shape != value.shape:
        return False
    if value.is_meta or first.is_meta:
        return value.is_meta
    return same_bits(value, first.to(value.device, value.dtype))
