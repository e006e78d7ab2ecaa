"""A finished run of ``gpart fit`` or ``gpart study``, built again.

Invariant: the model is built, adapted and loaded by a Trainer, as ``gpart validate --config … --ckpt_path …`` does it, so
that all checks of a checkpoint are made. Nothing in the run's folder is changed.
"""

from __future__ import annotations

import argparse
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from transformers.utils import logging as hf

from gpart.bases.own_classes import not_found
from gpart.callbacks.method import MethodCallback
from gpart.errors import GPartError
from gpart.heads import names_of_head
from gpart.injection.matching import saved_parameters
from gpart.studies.found_run import FinishedRun
from gpart.studies.trained_vector import TrainedVector, trained_vector

_MEANT = (
    ".*limit_val_batches.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's use of torch's pytree
    ".*set_vital.*",  # torchdata calls what torch deprecates
)
"""Warnings, as regular expressions."""


@dataclass(frozen=True)
class LoadedRun:
    """A run's model as it was trained, in eval mode and float32 arithmetic, with its validation data.

    Attributes:
        module: the LightningModule, with its trainer.
        data: the DataModule.
        network: the module that the method adapts.
        method: the name of what was trained, such as ``GPartCallback`` or ``LORA``.
        vector: what the method trains beside the head; the head itself where there is nothing else.
        of_head: whether it is the head itself, as for a linear probe.
        start: the vector before training, shape (d,); made again from the run's seed.
        monitored: the names of the metrics that the run's callbacks watched, as a ModelCheckpoint does.
    """

    module: LightningModule
    data: LightningDataModule
    network: nn.Module
    method: str
    vector: TrainedVector
    of_head: bool
    start: Tensor
    monitored: frozenset[str] = frozenset()


def load_run(run: FinishedRun, accelerator: str = "auto") -> LoadedRun:
    """Builds a run's model and data again, and loads its checkpoint.

    Args:
        run: from :func:`gpart.studies.found_run.find_run`.
        accelerator: Lightning's name of the device; one device is used.

    Raises:
        GPartError: if the configuration cannot be built, or the checkpoint does not fit it.
    """
    config = _read_config(run.config)
    with isolate_rng(), quiet():
        seed_generators(config.get("seed_everything"))
        module, data, method = _instantiate(config, run.config)
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision="32-true",
            callbacks=[] if method is None else [method],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.validate(module, data, verbose=False)  # only builds
        network = module if method is None or method._network is None else method._network
        vector, of_head = _vector(network, module, method)
        start = vector.read().clone()
        trainer.validate(module, data, ckpt_path=str(run.checkpoint), verbose=False, weights_only=True)  # only loads
    module.to(trainer.strategy.root_device).eval()
    return LoadedRun(module, data, network, _name(method), vector, of_head, start, _monitored(config))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise GPartError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not all(config.get(key) for key in ("model", "data")):
        keys = sorted(config) if isinstance(config, dict) else config
        raise GPartError(f"{path} is no configuration of 'gpart fit' with model and data: it holds {keys}")
    return config


def _monitored(config: dict[str, Any]) -> frozenset[str]:
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    settings = [one.get("init_args") or {} for one in callbacks if isinstance(one, dict)]
    return frozenset(one["monitor"] for one in settings if one.get("monitor"))


def _instantiate(
    config: dict[str, Any], path: Path
) -> tuple[LightningModule, LightningDataModule, MethodCallback | None]:
    """The three in the order in which the command makes them, so that they draw the same random numbers."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Callback, "method", subclass_mode=True, required=False)
    asked = {key: config[key] for key in ("model", "data", "method") if config.get(key)}
    try:
        made = parser.instantiate_classes(parser.parse_object(asked))
    except GPartError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:  # of a class that is not there any more
        why = not_found(str(error)) or f"its model, data or method cannot be made again: {error}"
        raise GPartError(f"{path}: {why}") from error
    method = made.get("method")
    if method is not None and not isinstance(method, MethodCallback):
        raise GPartError(f"{path}: method is a {type(method).__name__}, which is none of gpart.callbacks' methods")
    return made["model"], made["data"], method


def _vector(network: nn.Module, module: LightningModule, method: MethodCallback | None) -> tuple[TrainedVector, bool]:
    """The trained vector, and whether it is the head itself."""
    patterns = None if method is None else method.modules_to_save
    if patterns is None and "head" in module.hparams:  # full fine-tuning names none, and our modules know theirs
        patterns = names_of_head(network, module.hparams["head"])
    head = saved_parameters(network, patterns)[1]
    every = trained_vector(network)
    if {id(value) for value in every.parameters.values()} <= {id(network.get_parameter(name)) for name in head}:
        return every, True
    return trained_vector(network, head), False


def _name(method: MethodCallback | None) -> str:
    peft_type = getattr(method, "peft_type", None)
    return str(peft_type) if peft_type else "FullFineTuning" if method is None else type(method).__name__


def seed_generators(value: Any) -> None:
    """As ``seed_everything``, which the command calls, but without the environment variables that it leaves."""
    if isinstance(value, int) and not isinstance(value, bool):
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002  # the generator that libraries draw from
        torch.manual_seed(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the libraries do not tell what is meant: a Trainer that only builds, a new head that is filled then."""
    # The second when Transformers imports torchao.
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "torch.utils._pytree")}
    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    hf.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            for message in _MEANT:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()  # type: ignore[no-untyped-call]
