"""What a network says of itself: where its weights came from, its class, its task and its classes' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
TASKS = {
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForConditionalGeneration": "seq2seq-lm",
}
"""By the end of the name of a class of Transformers."""
PROBLEM_TYPES = {"regression": "regression", "multi-label": "multi_label_classification"}
"""What the configs of Transformers' classifiers call a task; one without a ``problem_type`` is classification."""


def facts_of(model: nn.Module) -> dict[str, Any]:
    """The facts that a network of Transformers or timm has with it, by the names of ``serialization.about.About``.

    Example:
        >>> facts_of(nn.Sequential())
        {'model_class': 'Sequential'}
    """
    kind = type(model).__name__
    config: Any = getattr(model, "config", None)
    timm: Any = getattr(model, "pretrained_cfg", None)
    facts: dict[str, Any] = {"model_class": kind}
    if isinstance(base := getattr(config, "_name_or_path", None), str) and base:
        facts["base"] = base
    elif isinstance(timm, dict) and isinstance(name := timm.get("architecture"), str):
        tag = timm.get("tag")
        facts["base"] = f"timm:{name}.{tag}" if tag else f"timm:{name}"
    classes: Any = getattr(config, "num_labels", None)
    if kind.endswith(CLASSIFIERS) and isinstance(classes, int):
        facts["task"] = classifiers_task(config)
        names: Any = getattr(config, "id2label", None)
        if isinstance(names, (list, tuple)):  # as somebody's own class may have it
            names = dict(enumerate(names))
        labels = [names.get(index) for index in range(classes)] if isinstance(names, Mapping) else []
        # LABEL_0, LABEL_1 are what Transformers calls classes without names.
        if len(labels) > 1 and all(isinstance(name, str) and not name.startswith("LABEL_") for name in labels):
            facts["labels"] = labels
    elif task := next((task for ending, task in TASKS.items() if kind.endswith(ending)), None):
        facts["task"] = task
    return facts


def classifiers_task(config: Any) -> str:
    """The task of one of Transformers' classifiers, by its config's ``problem_type`` and ``num_labels``.

    Example:
        >>> from types import SimpleNamespace
        >>> classifiers_task(SimpleNamespace(num_labels=1)), classifiers_task(SimpleNamespace(num_labels=3))
        ('regression', 'classification')
        >>> classifiers_task(SimpleNamespace(num_labels=3, problem_type="multi_label_classification"))
        'multi-label'
    """
    problem = getattr(config, "problem_type", None)
    said = next((task for task, name in PROBLEM_TYPES.items() if name == problem), None)
    return said or ("regression" if config.num_labels == 1 else "classification")
