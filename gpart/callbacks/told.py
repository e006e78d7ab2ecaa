"""What a run tells of itself for an adapter's file, and whose names the classes have when an adapter is used.

A LightningModule or a DataModule may tell facts by a method ``adapter_facts()``; a network of Transformers or timm has some
with it. What nobody tells is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from gpart.callbacks.packages import is_a
from gpart.errors import GPartError
from gpart.serialization.about import About, read_about

INPUTS = ("max_length", "image_size")
"""Hyperparameters of a DataModule that say what the model sees of an input."""

LABELS = "labels"
"""The hyperparameter that holds the classes' names, in modules that have one."""


@runtime_checkable
class TellsFacts(Protocol):
    """A LightningModule or a DataModule that knows what an adapter's file should say."""

    def adapter_facts(self) -> Mapping[str, Any]:
        """Some of ``base``, ``task``, ``labels`` (texts) and ``inputs`` (plain values); None for what is not known."""


def facts_told(module: Any) -> About:
    """What a LightningModule or a DataModule tells; of any DataModule, the hyperparameters that are of the inputs.

    Raises:
        GPartError: if a fact is not what it has to be.
    """
    if not isinstance(module, TellsFacts):
        settings = getattr(module, "hparams", {}) if is_a(module, LightningDataModule) else {}
        return About(inputs={name: settings[name] for name in INPUTS if settings.get(name) is not None})
    told = {name: value for name, value in module.adapter_facts().items() if value is not None}
    return read_about(told, f"{type(module).__name__}.adapter_facts()")


def about_run(trainer: Trainer, module: LightningModule, known: About) -> About:
    """What a run's adapter is to say of itself: the module's word goes over the data's, and both over the network's."""
    of_module, of_data = facts_told(module), facts_told(trainer.datamodule)  # type: ignore[attr-defined]  # set by its data connector
    inputs = {**of_data.inputs, **of_module.inputs}
    told = of_module.over(of_data).over(known)
    return About(**{**told.to_dict(), "inputs": inputs or told.inputs, "score": {}})


def agree_on_labels(trainer: Trainer, module: LightningModule, labels: list[str] | None, source: str) -> None:
    """Sees to it that the classes of an adapter that is used go by its own names.

    A module that has no names gets the adapter's. In training other names are another task, which may begin from the
    adapter; the same names in another order are a mistake there too.

    Args:
        trainer: in any stage. The data's names do not count in predicting, where the data need have none.
        module: the run's.
        labels: the adapter's names, if it has any.
        source: the adapter, for messages.

    Raises:
        GPartError: if the module or the data names the classes otherwise, with both lists.
    """
    if labels is None:
        return
    data = None if trainer.predicting else trainer.datamodule  # type: ignore[attr-defined]  # set by its data connector
    fitting = trainer.state.fn == "fit"
    for one in (module, data):
        names = facts_told(one).labels
        if names is None or names == labels or (fitting and sorted(names) != sorted(labels)):
            continue
        raise GPartError(
            f"{source} has the classes {labels} in this order, and {type(one).__name__} has {names}: its answers would"
            " go by wrong names. Leave the labels out to take the adapter's, or give them in its order"
        )
    if not fitting and LABELS in module.hparams and module.hparams[LABELS] is None:
        module.hparams[LABELS] = labels
