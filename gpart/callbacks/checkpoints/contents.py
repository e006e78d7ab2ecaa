"""What the checkpoint plugin needs to know of a module under GPart, or under a method that trains a part of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from gpart.adapter import GPartAdapter
from gpart.callbacks.guards.finite import check_finite
from gpart.errors import GPartError
from gpart.injection.fingerprint import FORMAT, fingerprint, is_base
from gpart.injection.modules import theta_key
from gpart.injection.names import get_parameter, named_buffers, named_parameters
from gpart.injection.tensors import entries_of
from gpart.loading import check_attached, check_tensors
from gpart.serialization.manifest import read_manifest


class AdapterContents:
    """A module with a GPart adapter."""

    def __init__(self, adapter: GPartAdapter, check_base: bool = True) -> None:
        self.adapter, self.check_base = adapter, check_base

    def manifest(self) -> dict[str, Any]:
        """The adapter's manifest, as in its folder.

        Raises:
            GPartError: if theta is not finite.
        """
        check_finite(self.adapter.values)
        return self.adapter.manifest().to_dict()

    def frozen_keys(self) -> set[str]:
        """All but theta and the saved modules."""
        return _with_other_names(self.adapter.model, set(self.adapter.plan.frozen))

    def check(self, manifest: Any, state: dict[str, Tensor], source: str) -> None:
        """The checks of the adapter folder, and that every trained parameter and buffer is there."""
        adapter = self.adapter
        check_attached(adapter, read_manifest(manifest, source), source, self.check_base)
        _check_keys(adapter.model, self.frozen_keys(), state, source)
        primary = {adapter.theta_name, *adapter.plan.saved, *named_buffers(adapter.model)}
        theta = {adapter.theta_name: theta_key(adapter.name)}
        tensors = {theta.get(key, key): value for key, value in state.items() if key in primary}
        check_tensors(adapter.model, adapter.plan, adapter.config, adapter.name, tensors, source)


class TrainedContents:
    """A module of which some parameters are trained and the others frozen, whatever the method.

    Args:
        model: the module.
        trained: the names of what is trained; of a shared parameter any of its names.
        method: the method's name, for the checkpoint.
        settings: what the method was made with, plain values, for the checkpoint.
    """

    def __init__(self, model: nn.Module, trained: Iterable[str], method: str, settings: dict[str, Any]) -> None:
        self.model, self.method, self.settings = model, method, settings
        every = named_parameters(model, remove_duplicate=False)
        kept = {id(every[name]) for name in trained}
        named = named_parameters(model).items()
        self.trained = [name for name, value in named if id(value) in kept]
        self.frozen = [name for name, value in named if id(value) not in kept]

    def freeze(self) -> None:
        """Freezes all that is not trained."""
        for name in self.frozen:
            get_parameter(self.model, name).requires_grad_(False)

    def manifest(self) -> dict[str, Any]:
        """Method, settings, trained parameters, base."""
        return {
            "method": self.method,
            "settings": self.settings,
            "trained": self.trained,
            "format": FORMAT,
            "base": fingerprint(self._base()),
        }

    def frozen_keys(self) -> set[str]:
        """All parameters but the trained ones."""
        return _with_other_names(self.model, set(self.frozen))

    def check(self, manifest: Any, state: dict[str, Tensor], source: str) -> None:
        """Same method and settings, same parameters, same base."""
        if not isinstance(manifest, dict) or manifest.get("method") != self.method:
            found = manifest.get("method", "GPart") if isinstance(manifest, dict) else manifest
            raise GPartError(f"{source} was trained by {found}, this run uses {self.method}")
        if manifest.get("trained") != self.trained:
            raise GPartError(f"{source} holds {manifest.get('trained')}, this run trains {self.trained}")
        if manifest.get("settings") != self.settings:
            raise GPartError(
                f"{source} was trained by {self.method} with {manifest.get('settings')}, this run has {self.settings}"
            )
        version = 1 if manifest.get("format", 1) == 1 else FORMAT
        if not is_base(self._base(), manifest.get("base"), version):
            found = fingerprint(self._base(), version)
            raise GPartError(f"{source} was trained on base {manifest.get('base')}, this model has fingerprint {found}")
        _check_keys(self.model, self.frozen_keys(), state, source)

    def _base(self) -> dict[str, Tensor]:
        return {name: get_parameter(self.model, name) for name in self.frozen}


def _check_keys(model: nn.Module, frozen: set[str], state: dict[str, Tensor], source: str) -> None:
    live = model.state_dict()
    needed = set(live) - frozen
    missing, surplus = sorted(needed - set(state)), sorted(set(state) - needed)
    if missing or surplus:
        raise GPartError(f"{source}: keys missing {missing}, keys too many {surplus}")
    for key in sorted(needed):
        if not isinstance(live[key], Tensor):
            continue
        if not isinstance(state[key], Tensor):
            raise GPartError(f"{source}: {key} holds a {type(state[key]).__name__}, here it is a tensor")
        if live[key].shape != state[key].shape:
            raise GPartError(f"{source}: {key} has shape {list(state[key].shape)}, here {list(live[key].shape)}")


def _with_other_names(model: nn.Module, keys: set[str]) -> set[str]:
    """The keys, and the further ones of the tensors that they name."""
    state = model.state_dict(keep_vars=True)
    return keys | set(entries_of(state, (state[key] for key in keys if key in state)))
