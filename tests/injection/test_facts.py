"""What a network says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gpart.injection.facts import facts_of

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}


def built(kind: str, **config: Any) -> nn.Module:
    import transformers

    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**{**SIZES, **config}))
    return model


@pytest.mark.parametrize(
    ("kind", "config", "task"),
    [
        ("ForSequenceClassification", {"num_labels": 3}, "classification"),
        ("ForSequenceClassification", {"num_labels": 1}, "regression"),
        ("ForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}, "multi-label"),
        ("ForTokenClassification", {}, "token-classification"),
        ("LMHeadModel", {"is_decoder": True}, "causal-lm"),
        ("ForMaskedLM", {}, "masked-lm"),
        ("Model", {}, None),
    ],
)
def test_the_task_is_told_by_the_class(kind: str, config: dict[str, Any], task: str | None) -> None:
    facts = facts_of(built(kind, **config))
    assert facts.get("task") == task
    assert facts["model_class"] == f"Bert{kind}"
    assert "base" not in facts
    assert "labels" not in facts


@pytest.mark.parametrize(
    ("names", "labels"), [(["no", "yes"], ["no", "yes"]), (["no"], None), ("no", None), (None, None)]
)
def test_a_class_of_somebodys_own_may_list_its_labels(names: object, labels: list[str] | None) -> None:
    class OwnForSequenceClassification(nn.Module):
        config = SimpleNamespace(num_labels=2, id2label=names)

    assert facts_of(OwnForSequenceClassification()).get("labels") == labels


def test_names_and_where_it_came_from() -> None:
    model = built("ForSequenceClassification", id2label={0: "no", 1: "yes"})
    model.config._name_or_path = "user/bert"  # type: ignore[union-attr]  # as from_pretrained sets it
    facts = facts_of(model)
    assert (facts["base"], facts["labels"]) == ("user/bert", ["no", "yes"])


def test_a_network_of_timm() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit.r160_in1k", pretrained=False, num_classes=2)
    assert facts_of(model) == {"model_class": "VisionTransformer", "base": "timm:test_vit.r160_in1k"}
