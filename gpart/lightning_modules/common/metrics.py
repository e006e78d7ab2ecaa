"""GLUE's metrics, as Hugging Face's ``evaluate`` defines them in metrics/glue/glue.py, and accuracies by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from gpart.errors import GPartError

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


class _PositiveF1(BinaryF1Score):
    """The F1 score of class 1, from two logits for each example."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.argmax(-1), target)


class _Matthews(MulticlassConfusionMatrix):
    """The Matthews correlation of any number of classes. It is 0 if all answers, or all labels, are of one class.

    torchmetrics' own metric (1.9) is not 0 for two classes and a constant answer, but for example 0.098, and such a
    value could select the checkpoint. scikit-learn gives 0. Source of the formula: J. Gorodkin, "Comparing two
    K-category assignments by a K-category correlation coefficient", 2004.
    """

    def compute(self) -> Tensor:
        table = super().compute().double()  # a row for each label, a column for each answer
        labels, answers, count = table.sum(1), table.sum(0), table.sum()
        covariance = table.trace() * count - labels @ answers
        spread = (count**2 - labels @ labels) * (count**2 - answers @ answers)
        return (covariance / spread.sqrt() if spread > 0 else torch.zeros_like(count)).float()


def _f1(classes: int) -> Metric:
    return _PositiveF1() if classes == 2 else MulticlassF1Score(classes, average="macro")


_CLASSES: dict[MetricName, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": _f1,
    "matthews": _Matthews,
}
_REGRESSION: dict[MetricName, Callable[[], Metric]] = {"pearson": PearsonCorrCoef, "spearman": SpearmanCorrCoef}


def metric_collection(names: list[MetricName] | None, num_labels: int, prefix: str) -> MetricCollection:
    """Makes a collection of metrics. Its results have the names ``prefix + name``.

    For classes, ``accuracy`` is the share of right labels. ``f1`` is the F1 score of class 1 if there are two classes,
    else the mean over the classes. ``matthews`` is the Matthews correlation, and 0 where that is undefined. For a
    regression, ``pearson`` and ``spearman`` are correlations of scores; in the latter, ties share their mean rank.

    Args:
        names: the metrics; the default is accuracy, or pearson and spearman for a regression.
        num_labels: the number of classes, or 1 for a regression.
        prefix: the prefix of the results' names, such as ``"val/"``.

    Raises:
        GPartError: if the number of labels is below 1, or a metric is unknown or does not fit the number of labels.

    Example:
        >>> import torch
        >>> metrics = metric_collection(["accuracy", "f1"], 2, "val/")
        >>> metrics.update(torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([1, 0]))
        >>> {name: round(value.item(), 3) for name, value in metrics.compute().items()}
        {'val/accuracy': 0.5, 'val/f1': 0.667}
    """
    if num_labels < 1:
        raise GPartError(f"num_labels must be at least 1, got {num_labels}")
    known = _REGRESSION if num_labels == 1 else _CLASSES
    if names is None:
        names = list(_REGRESSION) if num_labels == 1 else ["accuracy"]
    if not names or set(names) - set(known):
        raise GPartError(f"metrics for num_labels={num_labels} are {list(known)}, got {names}")
    chosen: dict[str, Metric | MetricCollection] = {
        name: _REGRESSION[name]() if num_labels == 1 else _CLASSES[name](num_labels) for name in names
    }
    # No compute groups: metrics of one group would share their state, and these metrics are few and cheap.
    return MetricCollection(chosen, prefix=prefix, compute_groups=False)


def accuracies(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the accuracy over all pictures, and the accuracy of each class.

    Args:
        counts: the confusion matrix, with a row for each true class.

    Returns:
        The overall accuracy, and a vector of the classes' accuracies. For a class without pictures it holds NaN.

    Example:
        >>> import torch
        >>> accuracies(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
        (tensor(0.8333), tensor([0.7500, 1.0000,    nan]))
    """
    right = counts.diagonal().float()
    return right.sum() / counts.sum(), right / counts.sum(1)
