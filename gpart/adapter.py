"""The adapter: attach it to any ``nn.Module``, train theta, merge, detach.

Invariant: an adapted layer runs on W0 + P·theta in one product. Attach freezes every parameter of the model but those
of ``modules_to_save``, adds theta as the last child, and changes no stored number; detach puts everything back: the
classes, the keys and their order, the bits of every weight, head and buffer.

    W = W0 + P·theta,    theta = 0 at the start,    PᵀP = I,    so ‖W - W0‖ = ‖theta‖.

Weights that torchao keeps in eight or four bits are unpacked when they are read: D counts their logical numbers, and the
layer runs on the sum in one product. With theta = 0 it then computes what the unpacked weights do, to the bit.

Source: paper, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gpart import base
from gpart.base import dense, is_packed
from gpart.config import GPartConfig
from gpart.evaluation import Evaluation
from gpart.functional import expand, update
from gpart.layers import CONTAINER, Adapters, Theta, Update, check_name
from gpart.memory import Memory
from gpart.snapshot import Snapshot
from gpart.targets import AdaptedWeight, Plan, plan


class Hooks(Protocol):
    """What is told when a module is entered and left."""

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""


def attach(
    model: nn.Module, config: GPartConfig, name: str = "default", indices: str = "auto", weights: str = "auto"
) -> GPartAdapter:
    """Attaches a GPart adapter to ``model``, in place.

    Args:
        model: any module; its parameters outside ``config.modules_to_save`` are frozen.
        config: the adapter's settings.
        name: stands in theta's key (``gpart.<name>.theta``) and in files.
        indices: the group numbers: ``"stored"``, ``"computed"`` or ``"auto"``, see :mod:`gpart.memory`.
        weights: W0 + P·theta: ``"kept"``, ``"forward"``, ``"recomputed"`` or ``"auto"``. Neither changes a result.

    Returns:
        The adapter. The model computes what it did before, bit for bit, until theta leaves 0.

    Raises:
        ValueError: if the config does not fit the model, the model carries an adapter already, or a parameter that
            Transformers has just initialised at random would be frozen. The model is then as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> adapter = attach(model, GPartConfig(d=5, target_modules=["0"], modules_to_save=["2"]))
        >>> adapter.size, [name for name, p in model.named_parameters() if p.requires_grad]
        (32, ['2.weight', '2.bias', 'gpart.default.theta'])
    """
    check_name(name)
    if CONTAINER in model._modules or hasattr(model, CONTAINER):
        held = list(adapters) if (adapters := get_adapters(model)) else type(getattr(model, CONTAINER)).__name__
        raise ValueError(f"cannot attach adapter {name!r}: the model's attribute {CONTAINER!r} already holds {held}")
    return _attach(model, config, name, plan(model, config), Memory(indices, weights))


def get_adapters(model: nn.Module) -> dict[str, GPartAdapter]:
    """The adapters attached to this very module (not to its children), by name."""
    container = model._modules.get(CONTAINER)
    if not isinstance(container, Adapters):
        return {}
    return {name: child.adapter for name, child in container.items() if isinstance(child, Theta)}


class GPartAdapter:
    """An attached adapter; made by :func:`attach` and :func:`gpart.load_adapter`.

    Attributes:
        model: the adapted module.
        config: its settings.
        name: its name.
        plan: the adapted weights in order, the saved and the frozen parameters' names.
        memory: what is kept in memory.
    """

    def __init__(self, model: nn.Module, config: GPartConfig, name: str, plan: Plan, memory: Memory) -> None:
        self.model, self.config, self.name, self.plan, self.memory = model, config, name, plan, memory
        self._evaluation = Evaluation(plan, config.d, config.seed, config.dropout, config.isometric, memory)
        self._snapshot = Snapshot(model, plan)
        self._disabled = False
        self._samples: dict[str, base.Sample] = {}  # of W0, where it is not whole later
        self._bases: dict[str, Tensor] | None = None  # W0 of every weight while merged

    @property
    def theta(self) -> nn.Parameter:
        """The one trainable vector, shape (d,), float32 or wider."""
        return self._holder().theta

    @property
    def values(self) -> Tensor:
        """Theta as a plain tensor, shape (d,): theta itself, but where a sharding strategy has made a DTensor of it."""
        return self._holder().values()

    @property
    def sharded(self) -> bool:
        """Whether the base weights are whole only while their layers run."""
        return self._evaluation.sharded

    @sharded.setter
    def sharded(self, sharded: bool) -> None:
        self._evaluation.sharded = sharded

    @property
    def size(self) -> int:
        """D, the number of adapted weights."""
        return self.plan.size

    @property
    def theta_name(self) -> str:
        """Theta's key in the model's state_dict."""
        return f"{CONTAINER}.{self.name}.theta"

    @property
    def merged(self) -> bool:
        """Whether W0 + P·theta stands in the stored weights."""
        return self._bases is not None

    def _holder(self) -> Theta:
        container = self.model._modules.get(CONTAINER)
        holder = container._modules.get(self.name) if isinstance(container, Adapters) else None
        if not isinstance(holder, Theta) or holder.adapter is not self:
            raise ValueError(
                f"adapter {self.name!r} is not attached any more; the model carries {get_adapters(self.model)}"
            )
        return holder

    def evaluate(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W0 + P·theta for one weight, once per forward pass; called when a layer reads the weight.

        Raises:
            ValueError: if the merged model is trained.
        """
        if self._disabled:
            return dense(base) if self._bases is None else self._bases[weight.name].to(base)  # it may have moved since
        if self._bases is not None:
            if training and torch.is_grad_enabled():
                raise ValueError(f"adapter {self.name!r} is merged: unmerge() before training, theta has no gradient")
            return base
        return self._evaluation.weight(weight, base, self.values, training)

    def delta(self, name: str) -> Tensor:
        """P·theta for one adapted parameter (zeros outside its slices), in its shape, in theta's dtype.

        Args:
            name: as in ``model.named_parameters()`` before attach.

        Raises:
            ValueError: if no adapted parameter has this name.
        """
        weight = next((weight for weight in self.plan.weights if weight.name == name), None)
        if weight is None:
            raise ValueError(f"{name!r} is not adapted; adapted are {[weight.name for weight in self.plan.weights]}")
        device = base.parameter(self.model, name).device
        out = torch.zeros(weight.shape, dtype=self.theta.dtype, device=device)
        scaled = self._evaluation.scaled(self.values, device)
        for part in self._evaluation.parts(weight, device):
            block = part.of(out)
            block.copy_(update(scaled, part, block.shape))
        return out

    @torch.no_grad()
    def merge(self) -> None:
        """Writes W0 + P·theta, rounded once, into the stored weights; W0 is kept for :meth:`unmerge`. Twice is once.

        Raises:
            ValueError: if a weight is packed, and so cannot hold the sum, or the base weights are sharded.
        """
        if self._bases is not None:
            return
        if self.sharded:
            raise ValueError(f"adapter {self.name!r} is sharded: load its file into a whole model, and merge there")
        for weight in self.plan.weights:
            if is_packed(stored := base.parameter(self.model, weight.name)):
                raise ValueError(
                    f"{weight.name} is packed ({type(stored).__name__}) and would round W0 + P·theta to its few bits:"
                    " load the base in bfloat16 or float32 to merge"
                )
        bases = {}
        for weight in self.plan.weights:
            stored = base.parameter(self.model, weight.name)
            bases[weight.name] = stored.detach().clone()
            parts = self._evaluation.parts(weight, stored.device)
            stored.copy_(expand(self._evaluation.scaled(self.values, stored.device), stored, parts))
        self._bases = bases
        self.free()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts the stored weights back to W0, bit for bit."""
        for name, stored in (self._bases or {}).items():
            base.parameter(self.model, name).copy_(stored)
        self._bases = None

    @contextmanager
    def cached(self) -> Iterator[None]:
        """Within it W0 + P·theta is computed once, not at every forward pass; for evaluation and generation.

        It holds where no gradient is wanted and no dropout is drawn, for one copy of the adapted weights in memory,
        which goes at the end unless ``weights`` keeps them. What was computed is used as long as theta and W0 are not
        written to; writing through ``.data`` is not seen.
        """
        try:
            with self._evaluation.kept:
                yield
        finally:
            stored = base.parameter(self.model, self.plan.weights[0].name)
            if not self._evaluation.kept.open and self._evaluation.mode(self.values, stored) != "kept":
                self.free()

    def free(self) -> None:
        """Gives back the memory of kept W0 + P·theta; what is needed later is computed again."""
        self._evaluation.kept.clear()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model runs without the update, on W0; the saved modules stay as trained."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    def detach(self) -> nn.Module:
        """Takes the adapter off: the model as it was before attach, with the bits that its heads and buffers had then.

        Returns:
            The model.

        Raises:
            ValueError: if it was taken off already, or the base weights are sharded.
        """
        if self.sharded:
            raise ValueError(f"adapter {self.name!r} is sharded: load its file into a whole model, and detach there")
        self.unmerge()
        self._remove()
        self._snapshot.restore(self.model)
        return self.model

    def merge_and_unload(self) -> nn.Module:
        """Takes the adapter off and leaves W0 + P·theta in the weights and the heads as trained: a plain model.

        Returns:
            The model; the name is PEFT's.
        """
        self.merge()
        self._bases = None
        self._remove()
        self._snapshot.restore_flags(self.model)
        return self.model

    def base_parameters(self) -> dict[str, Tensor]:
        """Every frozen parameter by its name before attach, with W0's values also while merged."""
        values = {name: base.parameter(self.model, name) for name in self.plan.frozen}
        return {**values, **(self._bases or {})}

    def base_fingerprint(self) -> str:
        """The fingerprint of the frozen parameters, as :func:`gpart.base.fingerprint`; of sharded ones from memory."""
        return base.fingerprint(self._samples if self.sharded and self._samples else self.base_parameters())

    def base_samples(self) -> dict[str, Tensor | base.Sample]:
        """Every frozen parameter, or what is remembered of it where this process has only a flat part."""
        values = self.base_parameters()
        return {
            name: value
            if name not in self._samples or self._samples[name].shape == value.shape
            else self._samples[name]
            for name, value in values.items()
        }

    @property
    def remembers_base(self) -> bool:
        """Whether :meth:`remember_base` was called."""
        return bool(self._samples)

    def remember_base(self) -> None:
        """Takes what the fingerprint needs, for the time when not every process that asks can gather it."""
        self._samples = {name: base.sample(name, value) for name, value in self.base_parameters().items()}

    def saved_parameters(self) -> dict[str, Tensor]:
        """The parameters of ``modules_to_save`` by name."""
        return {name: base.parameter(self.model, name) for name in self.plan.saved}

    def changed_buffers(self) -> dict[str, Tensor]:
        """The persistent buffers whose values differ from those at attach (BatchNorm's statistics), by name."""
        return self._snapshot.changed_buffers(self.model)

    def save(self, folder: str | Path) -> None:
        """Writes the adapter folder, see :func:`gpart.storage.save_adapter`."""
        from gpart.storage import save_adapter  # storage builds on this module

        save_adapter(self, folder)

    def _remove(self) -> None:
        self._holder()  # raises where it was taken off already
        for weight in self.plan.weights:
            for path, attribute in weight.owners:
                others = set(_parametrized(base.submodule(self.model, path))) - self._adapted(path)
                if others:
                    raise ValueError(f"{path}.{attribute} cannot be restored: {sorted(others)} are parametrized too")
        self._snapshot.remove_hooks()
        for path in dict.fromkeys(path for weight in self.plan.weights for path, _ in weight.owners):
            module = base.submodule(self.model, path)
            for attribute in _parametrized(module):
                module._parameters[attribute] = module.parametrizations[attribute].original  # type: ignore[index, union-attr]
            # Not through torch's remove_parametrizations: it deletes the property from the class, which a deepcopy of
            # the model shares, and puts the weight behind the bias.
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module._modules["parametrizations"]
            self._snapshot.restore_order(path, module)
        container = self.model._modules[CONTAINER]
        if isinstance(container, Adapters):
            del container[self.name]
        if not container:
            del self.model._modules[CONTAINER]

    def _adapted(self, path: str) -> set[str]:
        return {attribute for weight in self.plan.weights for owner, attribute in weight.owners if owner == path}

    def __repr__(self) -> str:
        """Shows what there is to train and to adapt."""
        return f"GPartAdapter({self.name!r}, d={self.config.d}, D={self.size}, weights={len(self.plan.weights)})"


def _attach(model: nn.Module, config: GPartConfig, name: str, made: Plan, memory: Memory) -> GPartAdapter:
    """Carries out a plan that was made for this model."""
    forgotten = base.randomly_initialised(model, made.frozen)
    if forgotten:
        raise ValueError(
            f"modules_to_save={config.modules_to_save!r} leaves out {forgotten}, which Transformers has just initialised"
            " at random since the checkpoint has none: name their module in modules_to_save, or they stay random"
        )
    inside = [path for path, module in base.named_modules(model) if path and isinstance(module, Theta)]
    if inside:
        raise ValueError(
            f"cannot attach adapter {name!r}: it would freeze {inside}, adapters of modules inside the model"
        )
    adapter = GPartAdapter(model, config, name, made, memory)
    for parameter in (base.parameter(model, frozen) for frozen in made.frozen):
        parameter.requires_grad_(False)
    for parameter in (base.parameter(model, saved) for saved in made.saved):
        parameter.requires_grad_(parameter.is_floating_point())
    device = base.parameter(model, made.weights[0].name).device
    for weight in made.weights:
        for path, attribute in weight.owners:
            module = base.submodule(model, path)
            parametrize.register_parametrization(module, attribute, Update(adapter, weight), unsafe=True)
            module.parametrizations.train(module.training)  # type: ignore[union-attr]
    container = Adapters({name: Theta(config.d, device, adapter)}).train(model.training)
    model.add_module(CONTAINER, container)
    for module, on in _hooked(model, made, adapter._evaluation):
        adapter._snapshot.hooks += [
            module.register_forward_pre_hook(on.enter),
            module.register_forward_hook(on.leave, always_call=True),
        ]
    return adapter


def _hooked(model: nn.Module, made: Plan, evaluation: Evaluation) -> list[tuple[nn.Module, Hooks]]:
    """Each module that is run within something, and that: a forward pass, a layer whose weights are computed again."""
    owners = {path for weight in made.weights for path, _ in weight.owners}
    # MultiheadAttention reads its output projection's weight itself, and does not call it.
    parents = {path.rpartition(".")[0] for path in owners}
    owners |= {path for path in parents if isinstance(base.submodule(model, path), nn.MultiheadAttention)}
    layers = {id(module): module for module in (base.submodule(model, path) for path in sorted(owners))}.values()
    return [
        *((module, evaluation.scope) for module in _scopes(model, made)),
        *((module, evaluation.recomputation) for module in layers),
    ]


def _scopes(model: nn.Module, made: Plan) -> list[nn.Module]:
    """The owners of adapted weights and every module that contains one, each once."""
    paths = {path for weight in made.weights for path, _ in weight.owners}
    above = {path.rsplit(".", count)[0] for path in paths for count in range(path.count(".") + 1)} | {""}
    return list({id(module): module for module in (base.submodule(model, path) for path in sorted(above))}.values())


def _parametrized(module: nn.Module) -> list[str]:
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
