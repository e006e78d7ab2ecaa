"""A refused base says what differs, and where in it the adapter's weights are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from gpart import GPartConfig, attach, load_adapter
from gpart.errors import GPartError
from gpart.injection.fingerprint import parts, shortened
from gpart.injection.nearby import another_head, hint

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 30,
    "max_position_embeddings": 8,
}


class Task(nn.Module):
    """As a LightningModule around its network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.other, self.model = nn.Linear(2, 2), model


def classifier(**changes: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES | changes))


def saved(model: nn.Module, at: Path, heads: list[str]) -> str:
    attach(model, GPartConfig(d=5, target_modules=["query", "value"], modules_to_save=heads)).save(at)
    return str(at)


def tokens() -> BertForTokenClassification:
    """The same encoder, without the pooler, below another head."""
    model = BertForTokenClassification(BertConfig(**SIZES))
    model.bert.load_state_dict(classifier().bert.state_dict(), strict=False)
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: BertModel(BertConfig(**SIZES)),
        (
            "this BertModel has these weights as encoder.layer.0.attention.self.query.weight: it is what the adapter's base"
            " has as 'bert'. Load onto the whole, such as a class with a head (AutoModelFor...) in place of AutoModel"
        ),
    ),
    (
        lambda: Task(classifier()),
        ("; its submodule 'model', a BertForSequenceClassification, has these weights: load onto that"),
    ),
    (
        lambda: classifier(hidden_size=16),
        (
            "the first difference: bert.encoder.layer.0.attention.self.query.weight has shape [8, 8] in the file, in this"
            " BertForSequenceClassification it has shape [16, 16]"
        ),
    ),
    (
        lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)),
        "in this RobertaForSequenceClassification it is not there, close is roberta.encoder.layer.0",
    ),
    (lambda: BertForSequenceClassification(BertConfig(**SIZES)).half(), "here they are float16; check_base=False"),
    (
        tokens,
        (
            "37 of the 39 frozen parameters that it was trained on are here as they were, so that this is the same encoder in"
            " another class: 2 are only there, here besides none. Load the class that it was trained on"
        ),
    ),
]


@pytest.mark.parametrize(("made", "said"), REFUSED, ids=["no head", "around", "size", "architecture", "dtype", "head"])
def test_a_refused_base_says_what_differs(tmp_path: Path, made: Callable[[], nn.Module], said: str) -> None:
    folder = saved(classifier(), tmp_path / "a", ["classifier"])
    torch.manual_seed(1)
    model = made()
    keys = list(model.state_dict())
    with pytest.raises(GPartError) as refused:
        load_adapter(model, folder)
    assert said in str(refused.value)
    assert list(model.state_dict()) == keys


def test_an_adapter_of_an_encoder_leads_to_the_submodule(tmp_path: Path) -> None:
    folder = saved(classifier().bert, tmp_path / "a", [])
    model = classifier()
    with pytest.raises(GPartError, match="its submodule 'bert', a BertModel, has these weights: load onto that"):
        load_adapter(model, folder)
    load_adapter(model.bert, folder)


def test_nothing_is_said_where_nothing_is_known() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    assert hint(net, [["0.weight", [3, 2]]]) == ""
    assert hint(net, []) == ""
    assert hint(net, [["0.weight", None]]) == ""
    assert "it is not there" in hint(net, [["x.0.weight", [3, 2]], ["0.bias", [3]]])


def test_another_head_needs_files_that_tell_and_half_that_agrees() -> None:
    frozen = {f"layer.{i}": torch.full((3,), float(i)) for i in range(6)}
    other = {f"layer.{i}": torch.full((3,), 50.0 + i) for i in range(5)}
    assert another_head(frozen, "") == ""
    assert another_head(frozen, shortened(parts(frozen))) == ""  # as many: which differ is told elsewhere
    assert another_head(frozen, shortened(parts(other))) == ""
    less = {name: value for name, value in frozen.items() if name != "layer.3"}
    assert another_head(frozen, shortened(parts(less))).startswith("; 5 of the 5 frozen parameters")
    assert "here besides layer.3." in another_head(frozen, shortened(parts(less)))
