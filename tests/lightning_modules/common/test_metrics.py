"""GLUE's metrics on a fixed set of predictions, against their definitions and against values from other libraries.

Hugging Face's ``evaluate`` (metrics/glue/glue.py) takes accuracy as the share of equal labels, F1 of class 1 from
scikit-learn's f1_score, matthews_corrcoef from scikit-learn, pearsonr and spearmanr from SciPy.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpart.errors import GPartError
from gpart.lightning_modules.common.metrics import metric_collection

LABELS = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1]
PREDICTED = [0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1]
GOLD = [0.0, 1.2, 5.0, 3.75, 2.0, 2.0, 4.4, 0.6, 3.0, 5.0]
SCORES = [0.3, 1.0, 4.1, 4.1, 2.6, 1.7, 3.9, 1.1, 2.2, 4.8]


def measured(names: list[str], num_labels: int, predictions: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    metrics = metric_collection(names, num_labels, "")
    # In unlike batches, as a loader's last one is: a mean of batches' values would differ.
    for part in (slice(0, 5), slice(5, 6), slice(6, None)):
        metrics.update(predictions[part], labels[part])
    return {name: value.item() for name, value in metrics.compute().items()}


def logits(classes: list[int], count: int = 2) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float() - 0.5


def test_classification_equals_the_definitions() -> None:
    got = measured(["accuracy", "f1", "matthews"], 2, logits(PREDICTED), torch.tensor(LABELS))
    pairs = list(zip(LABELS, PREDICTED, strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
    assert (tp, fp, fn, tn) == (5, 1, 2, 4)
    want = {
        "accuracy": 9 / 12,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "matthews": (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5,
    }
    assert got == pytest.approx(want, abs=1e-6)
    # scikit-learn 1.9.1: accuracy_score, f1_score, matthews_corrcoef
    assert got == pytest.approx({"accuracy": 0.75, "f1": 0.76923077, "matthews": 0.50709255}, abs=1e-6)


def test_regression_equals_the_definitions() -> None:
    got = measured(["pearson", "spearman"], 1, torch.tensor(SCORES), torch.tensor(GOLD))

    def ranks(values: list[float]) -> np.ndarray:  # ties share the mean of their ranks
        array = np.array(values)
        return np.array([(array < value).sum() + ((array == value).sum() + 1) / 2 for value in array])

    def pearson(one: np.ndarray, two: np.ndarray) -> float:
        one, two = one - one.mean(), two - two.mean()
        return float((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))

    want = {"pearson": pearson(np.array(SCORES), np.array(GOLD)), "spearman": pearson(ranks(SCORES), ranks(GOLD))}
    assert got == pytest.approx(want, abs=1e-6)
    # SciPy 1.17.1: pearsonr, spearmanr
    assert got == pytest.approx({"pearson": 0.96062363, "spearman": 0.93884231}, abs=1e-6)


def test_matthews_of_a_constant_answer_is_0_as_in_scikit_learn() -> None:
    assert measured(["matthews"], 2, logits([1] * 12), torch.tensor(LABELS)) == {"matthews": 0.0}


def test_three_classes() -> None:
    labels, predicted = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0, 2, 2, 0, 1, 1, 0, 1, 2, 1]
    got = measured(["accuracy", "f1", "matthews"], 3, logits(predicted, 3), torch.tensor(labels))
    # scikit-learn 1.9.1, f1_score with average="macro"
    assert got == pytest.approx({"accuracy": 0.7, "f1": 0.69841270, "matthews": 0.56060606}, abs=1e-6)


@pytest.mark.parametrize(
    ("names", "num_labels"), [(["f2"], 2), (["pearson"], 2), (["accuracy"], 1), ([], 2), (["matthews", "nosuch"], 3)]
)
def test_a_metric_that_does_not_fit_is_refused(names: list[str], num_labels: int) -> None:
    with pytest.raises(GPartError, match=f"num_labels={num_labels} are .* got \\["):
        metric_collection(names, num_labels, "")
