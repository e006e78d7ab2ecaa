"""What the classifiers of texts and of pictures share: where their labels come from, and the refusal of an untrained head.

Invariant: no network is built, and no metric made, before the number of labels is settled: by the settings, else by the data.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from torch import nn

from gpart.errors import GPartError
from gpart.lightning_modules.common.data_labels import DataLabels, labels_told, resolved_labels
from gpart.lightning_modules.common.new_head import NewHead


class Classifier(LightningModule):
    """The half of a classifier that knows no input. A subclass saves its hyperparameters, then calls :meth:`settle_said`.

    Its hyperparameters are ``num_labels``, ``labels`` and ``allow_untrained_head``, among others.
    """

    default_labels: ClassVar[int]
    """The number of labels where neither the settings nor the data say one."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        self._new_head: NewHead | None = None
        self._said: dict[str, Any] = {}
        self._labels: DataLabels | None = None

    @abstractmethod
    def build_metrics(self, labels: DataLabels) -> None:
        """Makes the metrics for settled labels, and writes these into the hyperparameters.

        Raises:
            GPartError: if there can be none for them.
        """

    def settle_said(self, *names: str) -> None:
        """Settles the labels by the settings, if these say how many there are; else setup does, by the data.

        Args:
            names: the settings of labels and metrics; what is said in them is kept.

        Raises:
            GPartError: if they contradict each other.
        """
        self._said = {name: self.hparams[name] for name in names}
        number, labels = self._said["num_labels"], self._said["labels"]
        if labels is not None and number is not None and len(labels) != number:
            raise GPartError(f"labels names {len(labels)} classes, num_labels is {number}: {labels}")
        if number is not None or labels is not None:
            self._build(None)

    def setup(self, stage: str) -> None:
        """Takes over what the data tells of the labels, and what was left out here.

        Raises:
            GPartError: if the data tells something else than was said here.
        """
        told = labels_told(self)
        if self._labels is None or told is not None:
            self._build(told)

    def on_test_start(self) -> None:
        """Refuses a head that nothing has trained (:class:`NewHead`)."""
        self._check_head("test")

    def on_predict_start(self) -> None:
        """Refuses a head that nothing has trained (:class:`NewHead`)."""
        self._check_head("predict")

    def settle(self) -> None:
        """Settles the labels, if that was not done: without a Trainer, which calls setup, by the settings or the default."""
        if self._labels is None:
            self._build(None)

    def _network(self) -> nn.Module:
        """The network.

        Raises:
            GPartError: if configure_model() has not run.
        """
        if self.model is None:
            raise GPartError("the network is not built yet: call configure_model() first")
        return self.model

    def _build(self, told: DataLabels | None) -> None:
        found = resolved_labels(self._said, told, self.default_labels)
        if found != self._labels:
            self.build_metrics(found)
            self._labels = found

    def _check_head(self, stage: str) -> None:
        if self._new_head is not None:
            self._new_head.check(self._network(), stage, self.hparams["allow_untrained_head"])
