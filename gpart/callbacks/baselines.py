"""The baselines that train some of the model's own parameters: full or partial fine-tuning, BitFit, the linear probe."""

from __future__ import annotations

import re
from abc import abstractmethod
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from gpart.adapter import get_adapters
from gpart.callbacks.checkpoints.contents import TrainedContents
from gpart.callbacks.checkpoints.filling import Contents
from gpart.callbacks.marks import frozen_by_methods, mark_started, mark_trained, stands, trained_before
from gpart.callbacks.method import MethodCallback
from gpart.callbacks.saving import Save, save_trained
from gpart.callbacks.shared import read_method, tuner_layers, write_method
from gpart.config import GPartConfig, SavedModules
from gpart.errors import GPartError
from gpart.injection.layers import check_shapes
from gpart.injection.matching import saved_parameters, with_own_names
from gpart.injection.names import named_parameters, split_name
from gpart.injection.targets import plan


class Selection(MethodCallback):
    """Freezes everything but a selection of the parameters; the methods differ in the selection only.

    Args:
        module: as for :class:`MethodCallback`.
        save_folder: the same.
        save: the same.
        adapter: a folder that this method has written, to start from.
    """

    def __init__(
        self,
        module: str | None = None,
        save_folder: str | None = None,
        save: Save | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(module, save_folder, save)
        self.start = self._known_start = adapter

    @abstractmethod
    def trained(self, network: nn.Module) -> list[str]:
        """Names of what is trained."""

    def apply(self, network: nn.Module) -> Contents:
        """Freezes the rest.

        Raises:
            GPartError: if the network carries an adapter, a lazy layer has not been run, or a random head would be frozen.
        """
        method = type(self).__name__
        if adapters := get_adapters(network):
            raise GPartError(f"the network carries an adapter, {list(adapters)}: detach() it before {method}")
        check_shapes(network)
        contents = TrainedContents(network, self.trained(network), method, self.settings())
        self.refuse_random(network, contents.frozen)
        if self.start is not None:
            # Once for a network: from then on it is trained. load_method sets a start later on, which is always read.
            if self.start != self._known_start or not stands(network, method, self.start):
                read_method(contents, self.start)
                mark_started(network, method, self.start)
            self._known_start = self.start
        contents.freeze()
        return contents

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: str) -> None:
        """Writes what was trained: its tensors by name, and a manifest."""
        contents = self._contents
        if not isinstance(contents, TrainedContents):
            raise GPartError(f"{type(self).__name__} has not been applied yet")
        save_trained(trainer, contents, folder, self.save, partial(write_method, trainer, pl_module, contents, folder))

    def settings(self) -> dict[str, Any]:
        """What a checkpoint says of the method, for it to be made again."""
        return {} if self.modules_to_save is None else {"modules_to_save": self.modules_to_save}


class FullFineTuning(Selection):
    """Trains everything that the model does not freeze itself: the paper's baseline FF.

    Args:
        module: the submodule that is meant; default the only child with parameters, or the whole.
        save_folder: where what was trained is written when fit ends; ``adapter=`` and
            :func:`gpart.callbacks.load_method` read it.
        save: what it holds, ``"best"`` or ``"last"``; default the best where a ModelCheckpoint has a monitor.
        adapter: such a folder to start from.
    """

    def trained(self, network: nn.Module) -> list[str]:
        """All that requires a gradient, or did until another method's callback froze it; and what was trained before.

        The model may freeze a part of that later on, for a stage or for good: it holds what was trained all the same.

        Raises:
            GPartError: if nothing does.
        """
        held = trained_before(network, type(self).__name__)
        if not tuner_layers(network):
            held |= frozen_by_methods(network)  # PEFT's layers freeze theirs for as long as they are there
        names = [name for name, value in named_parameters(network).items() if value.requires_grad or name in held]
        if not names:
            raise GPartError(f"{type(network).__name__} has no parameter that requires a gradient")
        return names

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As every method; the network remembers what is trained, once the module's own code has had its say on it."""
        super().on_fit_start(trainer, pl_module)
        if isinstance(self._contents, TrainedContents):
            mark_trained(self._contents.model, type(self).__name__, self._contents.trained)


class PartialFineTuning(Selection):
    """Trains the weights that GPart with the same ``target_modules`` adapts, and ``modules_to_save``; the rest is frozen.

    It is GPart's limit at d = D, where every weight has a number of its own: without weight decay both train alike, up to
    rounding. Under weight decay GPart is drawn to the pretrained weights, and this to 0.

    Args:
        target_modules: the layers whose weights are trained: names or name endings, a regular expression,
            ``"all-linear"`` or ``"query-value"``. Their biases are not.
        modules_to_save: what is trained beside them: the head, by name or name ending, or ``"head"``.
        module: the submodule that is meant; default the only child with parameters, or the whole.
        save_folder: where what was trained is written when fit ends; ``adapter=`` and
            :func:`gpart.callbacks.load_method` read it.
        save: what it holds, ``"best"`` or ``"last"``; default the best where a ModelCheckpoint has a monitor.
        adapter: such a folder to start from.
    """

    def __init__(
        self,
        target_modules: list[str] | str,
        modules_to_save: SavedModules | None = None,
        module: str | None = None,
        save_folder: str | None = None,
        save: Save | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(module, save_folder, save, adapter)
        # d is not looked at; the config checks the patterns, and its plan names the weights as GPart's own does.
        self.config = GPartConfig(d=1, target_modules=target_modules)
        self.modules_to_save = modules_to_save

    def trained(self, network: nn.Module) -> list[str]:
        """The layers' weights and the saved modules' parameters.

        Raises:
            GPartError: if a pattern matches nothing.
        """
        weights = [weight.name for weight in plan(network, with_own_names(self.config, network)).weights]
        return list(dict.fromkeys([*weights, *saved_parameters(network, self.modules_to_save)[1]]))

    def settings(self) -> dict[str, Any]:
        """The head and the layers."""
        return {**super().settings(), "target_modules": self.config.target_modules}


class LinearProbe(Selection):
    """Trains ``modules_to_save`` only: the paper's baseline LP.

    Args:
        modules_to_save: what is trained: the head, by name or name ending, or ``"head"``.
        module: the submodule to freeze; default the only child with parameters, or the whole.
        save_folder: where what was trained is written when fit ends; ``adapter=`` and
            :func:`gpart.callbacks.load_method` read it.
        save: what it holds, ``"best"`` or ``"last"``; default the best where a ModelCheckpoint has a monitor.
        adapter: such a folder to start from.
    """

    def __init__(
        self,
        modules_to_save: SavedModules,
        module: str | None = None,
        save_folder: str | None = None,
        save: Save | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(module, save_folder, save, adapter)
        self.modules_to_save = modules_to_save

    def trained(self, network: nn.Module) -> list[str]:
        """The saved modules' parameters."""
        return saved_parameters(network, self.modules_to_save)[1]


_BIAS = re.compile(r"bias|in_proj_bias|bias_[ih]h(_l\d+(_reverse)?)?")
"""What torch calls a bias: a layer's, MultiheadAttention's, and those of recurrent layers and their cells."""


class BitFit(Selection):
    """Trains the biases, those of normalisation and recurrent layers too, and ``modules_to_save``: the paper's baseline BitFit.

    Source: E. Ben Zaken, Y. Goldberg, S. Ravfogel, "BitFit", ACL 2022, section 3. For RoBERTa-base it is 102,144
    biases, for RoBERTa-large 271,360.

    Args:
        modules_to_save: what is trained beside the biases: the head, by name or name ending, or ``"head"``.
        module: the submodule to freeze; default the only child with parameters, or the whole.
        save_folder: where what was trained is written when fit ends; ``adapter=`` and
            :func:`gpart.callbacks.load_method` read it.
        save: what it holds, ``"best"`` or ``"last"``; default the best where a ModelCheckpoint has a monitor.
        adapter: such a folder to start from.
    """

    def __init__(
        self,
        modules_to_save: SavedModules | None = None,
        module: str | None = None,
        save_folder: str | None = None,
        save: Save | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(module, save_folder, save, adapter)
        self.modules_to_save = modules_to_save

    def trained(self, network: nn.Module) -> list[str]:
        """The biases' and the saved modules' parameters.

        Raises:
            GPartError: if the network has no bias.
        """
        named = named_parameters(network)
        biases = [name for name in named if _BIAS.fullmatch(split_name(name)[1])]
        if not biases:
            raise GPartError(f"{type(network).__name__} has no bias to train: its layers have weights only")
        return [*biases, *saved_parameters(network, self.modules_to_save)[1]]
