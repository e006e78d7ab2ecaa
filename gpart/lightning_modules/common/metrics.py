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
    MultilabelAccuracy,
    MultilabelF1Score,
)

from gpart.errors import GPartError
from gpart.lightning_modules.common.data_labels import Problem, problem_of

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
        # On the CPU, since MPS has no float64. A row for each label, a column for each answer.
        table = super().compute().cpu().double()
        labels, answers, count = table.sum(1), table.sum(0), table.sum()
        covariance = table.trace() * count - labels @ answers
        spread = (count**2 - labels @ labels) * (count**2 - answers @ answers)
        return (covariance / spread.sqrt() if spread > 0 else torch.zeros_like(count)).float().to(self.device)


class _SeveralF1(MultilabelF1Score):
    """From logits, and a 0.0 or 1.0 for each class."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        # torchmetrics takes scores from 0 to 1 as they are, and logits may happen to be so.
        super().update(preds.sigmoid(), target.int())


class _SeveralAccuracy(MultilabelAccuracy):
    """The same."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.sigmoid(), target.int())


def _f1(classes: int) -> Metric:
    return _PositiveF1() if classes == 2 else MulticlassF1Score(classes, average="macro")


_CLASSES: dict[MetricName, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": _f1,
    "matthews": _Matthews,
}
_SEVERAL: dict[MetricName, Callable[[int], Metric]] = {
    "f1": lambda classes: _SeveralF1(classes, average="micro"),
    "accuracy": lambda classes: _SeveralAccuracy(classes, average="micro"),
}
_REGRESSION: dict[MetricName, Callable[[int], Metric]] = {
    "pearson": lambda _: PearsonCorrCoef(),
    "spearman": lambda _: SpearmanCorrCoef(),
}
_KNOWN: dict[Problem, dict[MetricName, Callable[[int], Metric]]] = {
    "single_label_classification": _CLASSES,
    "multi_label_classification": _SEVERAL,
    "regression": _REGRESSION,
}
_DEFAULTS: dict[Problem, list[MetricName]] = {
    "single_label_classification": ["accuracy"],
    "multi_label_classification": ["f1", "accuracy"],
    "regression": ["pearson", "spearman"],
}


def metric_names(names: list[MetricName] | None, num_labels: int, problem: Problem | None = None) -> list[MetricName]:
    """The metrics that are meant: those given, or a task's own.

    Raises:
        GPartError: if the number of labels is below 1, or does not fit the task, or a metric is unknown or does not.

    Example:
        >>> metric_names(None, 3), metric_names(None, 1)
        (['accuracy'], ['pearson', 'spearman'])
    """
    if num_labels < 1:
        raise GPartError(f"num_labels must be at least 1, got {num_labels}")
    problem = problem or problem_of(num_labels)
    if problem != "regression" and num_labels < 2:
        raise GPartError(f"problem_type={problem!r} takes two classes or more, got num_labels={num_labels}")
    known = _KNOWN[problem]
    if names is None:
        return _DEFAULTS[problem]
    if not names or set(names) - set(known):
        task = f"num_labels={num_labels}" if problem == problem_of(num_labels) else problem
        raise GPartError(f"metrics for {task} are {list(known)}, got {names}")
    return list(names)


def metric_collection(
    names: list[MetricName] | None, num_labels: int, prefix: str, problem: Problem | None = None
) -> MetricCollection:
    """Makes a collection of metrics. Its results have the names ``prefix + name``.

    For classes, ``accuracy`` is the share of right labels. ``f1`` is the F1 score of class 1 if there are two classes,
    else the mean over the classes. ``matthews`` is the Matthews correlation, and 0 where that is undefined. For several
    classes an example, both are over all pairs of an example and a class. For a regression, ``pearson`` and ``spearman``
    are correlations of scores; in the latter, ties share their mean rank.

    Args:
        names: the metrics; the default is accuracy, f1 and accuracy for several classes an example, or pearson and
            spearman for a regression.
        num_labels: the number of classes, or 1 for a regression.
        prefix: the prefix of the results' names, such as ``"val/"``.
        problem: the task; the default is what ``num_labels`` means.

    Raises:
        GPartError: if the number of labels is below 1, or a metric is unknown or does not fit the task.

    Example:
        >>> import torch
        >>> metrics = metric_collection(["accuracy", "f1"], 2, "val/")
        >>> metrics.update(torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([1, 0]))
        >>> {name: round(value.item(), 3) for name, value in metrics.compute().items()}
        {'val/accuracy': 0.5, 'val/f1': 0.667}
    """
    problem = problem or problem_of(num_labels)
    made: dict[str, Metric | MetricCollection] = {
        name: _KNOWN[problem][name](num_labels) for name in metric_names(names, num_labels, problem)
    }
    # No compute groups: metrics of one group would share their state, and these metrics are few and cheap.
    return MetricCollection(made, prefix=prefix, compute_groups=False)


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
