"""Hugging Face PEFT's methods by the same path as GPart: LoRA, VeRA, FourierFT, Uni-LoRA and the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn

from gpart.adapter import get_adapters
from gpart.callbacks.checkpoints.contents import TrainedContents
from gpart.callbacks.checkpoints.filling import Contents
from gpart.callbacks.marks import mark_frozen, mark_started, stands
from gpart.callbacks.method import MethodCallback
from gpart.callbacks.saving import Save, save_trained
from gpart.callbacks.shared import heads_of, read_peft, tuner_layers, write_peft
from gpart.config import SavedModules
from gpart.errors import GPartError
from gpart.injection.attention import QUERY_VALUE, query_value
from gpart.injection.layers import check_shapes
from gpart.injection.matching import matches, saved_parameters
from gpart.injection.names import named_buffers, named_modules, named_parameters

_APPLIED = "_gpart_peft"
"""The network's attribute for what a callback has done to it: a second trainer's callback adopts that."""


class _Applied(NamedTuple):
    """A tuple, so that torch does not register the wrapper as a child of what it wraps."""

    described: dict[str, Any]
    model: PeftModel
    first: dict[str, Tensor]
    """The buffers before training."""
    trained: list[str]
    """The parameters that the method trains, the head's among them."""


class PeftCallback(MethodCallback):
    """Adapts the network by ``peft.get_peft_model``, in place: the LightningModule keeps the network that it built.

    PEFT replaces the targeted layers within the network; the wrapper around it is at hand as ``callback.peft_model``,
    for ``save_pretrained`` and ``merge_and_unload``. The head is trained in place, not by PEFT's ``modules_to_save``,
    which would keep a second copy of it and change its keys.

    Args:
        peft_type: PEFT's name of the method: ``LORA``, ``VERA``, ``FOURIERFT``, ``UNILORA`` ...
        target_modules: which layers to adapt, by PEFT's rules; or ``"query-value"``, the query and value projections
            by their usual names (a layer that holds query, key and value together is adapted as a whole).
        modules_to_save: modules that are trained and stored in full, the head: names or name endings, or ``"head"``.
        settings: the other arguments of the method's PEFT config, such as ``{"r": 8, "lora_alpha": 16}``.
        module: the submodule to adapt; default the only child with parameters, or the whole.
        save_folder: where PEFT's own folder is written when fit ends, with the head as its ``modules_to_save``:
            ``peft.PeftModel.from_pretrained(model, folder)`` reads it without gpart, and ``adapter=`` here.
        save: what it holds, ``"best"`` or ``"last"``; default the best where a ModelCheckpoint has a monitor.
        adapter: such a folder to start from.

    Raises:
        GPartError: if PEFT knows no such method or refuses the settings.
    """

    def __init__(
        self,
        peft_type: str,
        target_modules: list[str] | str,
        modules_to_save: SavedModules | None = None,
        settings: dict[str, Any] | None = None,
        module: str | None = None,
        save_folder: str | None = None,
        save: Save | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(module, save_folder, save)
        self.start = adapter
        self._first: dict[str, Tensor] = {}
        self.peft_type, self.target_modules, self.modules_to_save = peft_type, target_modules, modules_to_save
        self.settings = dict(settings or {})
        self._peft_model: PeftModel | None = None
        self._config(self.target_modules)

    @property
    def peft_model(self) -> PeftModel:
        """PEFT's wrapper, once the network is built.

        Raises:
            GPartError: before.
        """
        if self._peft_model is None:
            raise GPartError("there is no PEFT model yet: the trainer adapts the network when it sets it up")
        return self._peft_model

    def apply(self, network: nn.Module) -> Contents:
        """Adapts the network, or adopts the adapter that an equal callback gave it.

        Raises:
            GPartError: if PEFT refuses, the network is adapted otherwise, a lazy layer has not been run, or a random head would
                be frozen.
        """
        described, method = self._described(), type(self).__name__
        if applied := _applied(network):
            if applied.described != described:
                raise GPartError(f"the network was adapted with {applied.described}, this callback has {described}")
            if self.start is not None and not stands(network, method, self.start):
                read_peft(applied.model, self.start)
        else:
            first = {name: value.detach().clone() for name, value in named_buffers(network).items()}
            before = [name for name, value in named_parameters(network).items() if value.requires_grad]
            model = self._wrapped(network, described)
            mark_frozen(network, before)  # by the names that they have without PEFT's layers
            for name in saved_parameters(network, self.modules_to_save)[1]:
                network.get_parameter(name).requires_grad_(True)
            trained = [name for name, value in named_parameters(network).items() if value.requires_grad]
            applied = _Applied(described, model, first, trained)
            setattr(network, _APPLIED, applied)
        if self.start is not None:
            mark_started(network, method, self.start)
        self._peft_model, self._first = applied.model, applied.first
        every = named_parameters(network, remove_duplicate=False)
        saved = saved_parameters(network, self.modules_to_save)[1]
        trained = [name for name in (*applied.trained, *saved) if name in every]  # a setup may have built the head anew
        contents = TrainedContents(network, trained, method, described)
        # The flags may have been set since, as by freeze() and unfreeze() of the LightningModule.
        contents.freeze(contents.trained)
        return contents

    def _wrapped(self, network: nn.Module, described: dict[str, Any]) -> PeftModel:
        """PEFT's wrapper around the network, with the numbers to start from; where one is refused, the network is as before."""
        self._refuse_adapted(network)
        if not any(True for _ in network.parameters()):
            raise GPartError(f"{type(network).__name__} has no parameters yet")
        check_shapes(network)
        saved = set(saved_parameters(network, self.modules_to_save)[1])
        named, tables = named_parameters(network, remove_duplicate=False), self._tables(network)
        frozen = [name for name, value in named.items() if name not in saved and id(value) not in tables]
        self.refuse_random(network, frozen)
        targets = query_value(network)[0] if self.target_modules == QUERY_VALUE else self.target_modules
        flags = [(value, value.requires_grad) for value in network.parameters()]
        try:
            with warnings.catch_warnings():
                # Transformers' new name for what PEFT asks it for.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                # Of a network without numbers PEFT needs to be told.
                meta = any(value.is_meta for value in network.parameters())
                model: PeftModel = get_peft_model(network, self._config(targets), low_cpu_mem_usage=meta)
        except (ValueError, TypeError, AttributeError) as error:
            _give_back(flags)
            raise GPartError(f"PEFT refuses {described}: {error}") from error
        if self.start is not None:
            try:
                read_peft(model, self.start)
            except Exception:
                # A network that stays adapted would be adopted by the next apply, which a module with a setup has.
                with suppress(AttributeError):  # some methods cannot be taken off
                    model.unload()
                _give_back(flags)
                raise
        return model

    @contextmanager
    def plain_network(self, network: nn.Module) -> Iterator[nn.Module]:
        """Within it, a copy into which PEFT has merged its layers: in place it would not give W0 back to the bit.

        Raises:
            GPartError: if PEFT cannot merge this method.
        """
        try:
            merged: nn.Module = deepcopy(self.peft_model).merge_and_unload(safe_merge=True)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise GPartError(f"PEFT cannot merge {self.peft_type} into a plain network: {error}") from error
        yield merged

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: str) -> None:
        """Writes PEFT's own folder."""
        contents, model = self._contents, self.peft_model
        if not isinstance(contents, TrainedContents):
            raise GPartError(f"{type(self).__name__} has not been applied yet")
        heads = heads_of(model.get_base_model(), self.modules_to_save)

        def files(tensors: dict[str, Tensor], _score: dict[str, Any]) -> None:  # PEFT's file has no place for it
            write_peft(model, heads, folder, tensors, self._first)

        save_trained(trainer, contents, folder, self.save, files)

    def summary(self, trainer: Any) -> dict[str, str]:
        """PEFT's method and how many layers it adapts."""
        count = len(tuner_layers(self.peft_model.get_base_model()))
        return {"method": self.peft_type, "adapted layers": f"{count:,}"}

    def _described(self) -> dict[str, Any]:
        return {
            "peft_type": self.peft_type,
            "target_modules": self.target_modules,
            "modules_to_save": self.modules_to_save,
            "settings": self.settings,
        }

    def _tables(self, network: nn.Module) -> set[int]:
        """Ids of the embeddings of which PEFT trains and keeps the new rows itself, and leaves the others alone."""
        tokens = self.settings.get("trainable_token_indices")
        if not tokens:
            return set()
        if isinstance(tokens, dict):
            modules = [module for path, module in named_modules(network) if matches(path, list(tokens))]
        else:
            modules = [network.get_input_embeddings()] if hasattr(network, "get_input_embeddings") else []  # type: ignore[operator]
        return {id(value) for module in modules for value in module.parameters()}

    def _config(self, targets: list[str] | str) -> PeftConfig:
        names = [kind.value for kind in PeftType]
        if self.peft_type not in names:
            raise GPartError(f"peft_type {self.peft_type!r} is none of PEFT's: {', '.join(names)}")
        cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Specified to not save vera_A")  # meant: they come from their seed
                # Every type's class but the base takes target_modules.
                config: PeftConfig = cls(target_modules=targets, **self.settings)  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise GPartError(f"{cls.__name__} refuses {self.settings}: {error}") from error
        return config

    def _refuse_adapted(self, network: nn.Module) -> None:
        if adapters := get_adapters(network):
            raise GPartError(f"the network carries a GPart adapter, {list(adapters)}: detach() it before PEFT's")
        if adapted := tuner_layers(network):
            raise GPartError(f"the network carries a PEFT adapter already, at {adapted[:3]} ...")


def _give_back(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for value, flag in flags:
        value.requires_grad_(flag)


def _applied(network: nn.Module) -> _Applied | None:
    """What a callback has done to the network, if PEFT has not taken its layers out since (``merge_and_unload``)."""
    applied: _Applied | None = getattr(network, _APPLIED, None)
    if applied is None or tuner_layers(network):
        return applied
    if set(applied.trained) <= set(named_parameters(network)):
        return applied  # some methods have layers of another class
    delattr(network, _APPLIED)
    return None
