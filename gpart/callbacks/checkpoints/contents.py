"""What the checkpoint plugin needs to know of a module under GPart, or under a method that trains a part of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from gpart.adapter import GPartAdapter, get_adapters
from gpart.callbacks.checkpoints.live import plain_state
from gpart.callbacks.guards.finite import check_finite
from gpart.callbacks.marks import frozen_by_methods, mark_frozen, mark_loaded, mark_trained
from gpart.errors import GPartError
from gpart.injection.fingerprint import FORMAT, exact_digests, fingerprint, is_base, moved
from gpart.injection.modules import SAVED, theta_key
from gpart.injection.names import get_parameter, named_buffers, named_parameters
from gpart.injection.tensors import entries_of
from gpart.loading import check_attached, check_tensors
from gpart.serialization.manifest import read_manifest


class AdapterContents:
    """A module with a GPart adapter."""

    def __init__(
        self, adapter: GPartAdapter, check_base: bool = True, whole: bool = False, copies: tuple[str, ...] = ()
    ) -> None:
        self.adapter, self.check_base, self.whole, self.copies = adapter, check_base, whole, copies
        self._bits: dict[str, bytes] = {}
        self._awaited: tuple[str, Tensor] | None = None

    @property
    def attached(self) -> bool:
        """Whether the adapter was not taken off."""
        return self.adapter.attached

    def each(self) -> list[AdapterContents]:
        """This one and those of the other adapters on the same module, active or not, in the order of their attachment."""
        adapters = get_adapters(self.adapter.model).values()
        return [self if one is self.adapter else AdapterContents(one, self.check_base) for one in adapters]

    def tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a module's state is this adapter's: theta, its head, and the buffers that stand in the model with it.

        Args:
            state: by relative names.
        """
        laid = f"{self.adapter.theta_name.removesuffix('theta')}{SAVED}."
        own = {key.removeprefix(laid): value for key, value in state.items() if key.startswith(laid)}
        if self.adapter.active:
            buffers = named_buffers(self.adapter.model)
            standing = {
                name: value for name, value in state.items() if name in self.adapter.plan.saved or name in buffers
            }
            own = {**standing, **own}
        theta = self.adapter.theta_name
        return {**own, **({theta: state[theta]} if theta in state else {})}

    def placed(self, key: str) -> str:
        """Where theta stands in a container follows from the adapter that came first; before 0.2 it stood at its end."""
        for name, adapter in get_adapters(self.adapter.model).items():
            before, own, rest = f".{key}".partition(f".{theta_key(name).removesuffix('theta')}")
            if own and (rest == "theta" or rest.startswith(f"{SAVED}.")) and not before.endswith(f".{SAVED}"):
                return adapter.theta_name.removesuffix("theta") + rest
        return key

    def own(self) -> list[Tensor]:
        """Theta."""
        return [self.adapter.theta]

    def merged(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The frozen parameters, with W0 + P·theta in the adapted ones, where a checkpoint is to hold them."""
        if not self.whole:
            return None
        theta = trained.get(self.adapter.theta_name)
        return {**self.adapter.base_parameters(), **self.adapter.merged_weights(theta)}

    def remember_bits(self) -> None:
        """Remembers the bits of the frozen weights, for :meth:`check_bits`."""
        self._bits = exact_digests(self.adapter.base_parameters())

    def check_bits(self) -> None:
        """Checks that the frozen weights still have the bits that were remembered: W0 is not what theta belongs to else.

        Raises:
            GPartError: if some have moved, with their names.
        """
        if not self._bits:
            return
        if changed := moved(self._bits, exact_digests(self.adapter.base_parameters())):
            raise GPartError(
                f"{len(changed)} of the {len(self._bits)} frozen weights were written to in training, {changed[:3]}: theta"
                " alone does not give this model back. Something goes around requires_grad, as an average that writes"
                " through .data; leave frozen parameters out of it, or name its copies in GPartCallback(copies=[...])"
            )

    def manifest(self) -> dict[str, Any]:
        """The adapter's manifest, as in its folder.

        Raises:
            GPartError: if theta is not finite, or a frozen weight was written to in training.
        """
        check_finite(self.adapter.values)
        self.check_bits()
        return self.adapter.manifest().to_dict()

    def frozen_keys(self) -> set[str]:
        """All but theta and the saved modules, those of other adapters too."""
        saved = {name for other in get_adapters(self.adapter.model).values() for name in other.plan.saved}
        return _with_other_names(self.adapter.model, set(self.adapter.plan.frozen) - saved)

    def check(
        self,
        manifest: Any,
        state: dict[str, Tensor],
        source: str,
        whole: bool = True,
        own: dict[str, Tensor] | None = None,
    ) -> None:
        """The checks of the adapter folder, and that every trained parameter and buffer is there; else theta alone.

        Args:
            manifest: as read.
            state: the whole module's, by relative names.
            source: where it is from.
            whole: whether more than theta has to be there.
            own: the adapter's own part of it, where the module carries others too.
        """
        adapter, plan = self.adapter, self.adapter.plan
        if adapter.merged:
            raise GPartError(
                f"{source} holds a theta, and adapter {adapter.name!r} is merged: unmerge() before it is loaded"
            )
        check_attached(adapter, read_manifest(manifest, source), source, self.check_base)
        if whole:
            _check_keys(adapter.model, self.frozen_keys(), state, source)
            primary = {adapter.theta_name, *plan.saved, *named_buffers(adapter.model)}
        else:
            primary, plan = {adapter.theta_name}, replace(plan, saved=())
        theta = {adapter.theta_name: theta_key(adapter.name)}
        held = state if own is None else own
        tensors = {theta.get(key, key): value for key, value in held.items() if key in primary}
        check_tensors(adapter.model, plan, adapter.config, adapter.name, tensors, source)
        if adapter.sharded:
            return  # to look at theta takes all ranks, and one alone may read
        before, found = adapter.values.detach(), tensors[theta_key(adapter.name)]
        if not before.is_meta and not found.is_meta:
            self._awaited = None if _same(before, found) else (source, before.clone())

    def check_loaded(self) -> None:
        """Warns where the theta of the file that was read last has not come into the module: its own code has dropped it."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None and _same(awaited[1], self.adapter.values.detach()):
            rank_zero_warn(
                f"the theta of {awaited[0]} was not loaded: the module leaves it out, or has another name for it, in its"
                " state_dict, load_state_dict or on_load_checkpoint, and is not strict. What its state_dict renames, its"
                " load_state_dict has to name back"
            )


class TrainedContents:
    """A module of which some parameters are trained and the others frozen, whatever the method.

    Args:
        model: the module.
        trained: the names of what is trained; of a shared parameter any of its names.
        method: the method's name, for the checkpoint.
        settings: what the method was made with, plain values, for the checkpoint.
    """

    copies: tuple[str, ...] = ()
    whole = False

    def __init__(self, model: nn.Module, trained: Iterable[str], method: str, settings: dict[str, Any]) -> None:
        self.model, self.method, self.settings = model, method, settings
        every = named_parameters(model, remove_duplicate=False)
        kept = {id(every[name]) for name in trained}
        named = named_parameters(model).items()
        self.trained = [name for name, value in named if id(value) in kept]
        self.frozen = [name for name, value in named if id(value) not in kept]

    @property
    def attached(self) -> bool:
        """Whether the module has the parameters that it had."""
        return {*self.trained, *self.frozen} <= set(named_parameters(self.model, remove_duplicate=False))

    def placed(self, key: str) -> str:
        """The key itself."""
        return key

    def own(self) -> list[Tensor]:
        """None: the method adds none, or its checkpoints are not for plain modules."""
        return []

    def merged(self, trained: Mapping[str, Tensor]) -> None:
        """Its checkpoints hold what is trained."""

    def freeze(self, thawed: Iterable[str] = ()) -> None:
        """Freezes all that is not trained. Of what is trained, what another method's callback froze is trained again.

        What the project itself has frozen stays so: a teacher, a backbone that rests for a stage.

        Args:
            thawed: names of what is trained whoever froze it.
        """
        again = {*thawed, *(frozen_by_methods(self.model) & set(self.trained))}
        frozen = {name: get_parameter(self.model, name) for name in self.frozen}
        mark_frozen(self.model, [name for name, value in frozen.items() if value.requires_grad], self.trained)
        for value in frozen.values():
            value.requires_grad_(False)
        for value in (get_parameter(self.model, name) for name in again):
            if value.is_floating_point() or value.is_complex():
                value.requires_grad_(True)

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

    def check(self, manifest: Any, state: dict[str, Tensor], source: str, whole: bool = True) -> None:
        """Same method and settings, same parameters, same base; the network remembers that a file is read into it."""
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
        if whole:
            _check_keys(self.model, self.frozen_keys(), state, source)
        mark_loaded(self.model, self.method)
        mark_trained(self.model, self.method, self.trained)

    def _base(self) -> dict[str, Tensor]:
        return {name: get_parameter(self.model, name) for name in self.frozen}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.cpu().double(), other.detach().cpu().double())


def _check_keys(model: nn.Module, frozen: set[str], state: dict[str, Tensor], source: str) -> None:
    live = plain_state(model)
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
    state = plain_state(model)
    return keys | set(entries_of(state, (state[key] for key in keys if key in state)))
