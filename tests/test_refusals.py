"""What a user can get wrong: one ValueError with both sides, and the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import BertConfig, BertForSequenceClassification, BertModel

from gpart import GPartConfig, Partition, attach


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.ModuleDict({"query": nn.Linear(4, 6), "drop": nn.Dropout()})})
    model["head"] = nn.Linear(6, 2)
    model["words"] = nn.Embedding(5, 4)
    model["out"] = nn.Linear(4, 5, bias=False)
    model["out"].weight = model["words"].weight
    return model


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"d": 0}, "d must be a whole number, 1 or more, got 0"),
    ({"d": -3}, "got -3"),
    ({"d": 2.0}, r"got 2\.0"),
    ({"d": True}, "got True"),
    ({"d": "5"}, "got '5'"),
    ({"seed": -1}, "seed must be .* got -1"),
    ({"seed": 1 << 64}, "seed must be"),
    ({"seed": 0.5}, "seed must be"),
    ({"bias": "some"}, "'none', 'all', got 'some'"),
    ({"dropout": 1.0}, r"below 1, got 1\.0"),
    ({"dropout": -0.1}, "dropout must be"),
    ({"dropout": "0.1"}, "dropout must be"),
    ({"isometric": 1}, "isometric must be true or false, got 1"),
    ({"target_modules": []}, "target_modules must be a non-empty list"),
    ({"target_modules": ""}, "target_modules must be"),
    ({"target_modules": [1]}, r"got \[1\]"),
    ({"target_modules": "("}, "no valid regular expression"),
    ({"target_modules": {"query"}}, "a set has no order"),
    ({"exclude_modules": "["}, "exclude_modules is no valid regular expression"),
    ({"modules_to_save": "head"}, "modules_to_save must be a list of names, got 'head'"),
    ({"slices": {"query": [[2, 1]]}}, r"\[2, 1\] after 0"),
    ({"slices": {"query": [[0, 2], [1, 3]]}}, r"\[1, 3\] after 2"),
    ({"slices": {"query": [[0]]}}, r"got \[0\]"),
    ({"slices": {"query": "0:2"}}, "'0:2'"),
    ({"slices": ["query"]}, "must map"),
]


@pytest.mark.parametrize(("change", "said"), CONFIGS)
def test_settings(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GPartConfig(**{"d": 5, "target_modules": ["query"], **change})


FITS: list[tuple[dict[str, Any], str]] = [
    ({"d": 25}, r"d=25 is more than the 24 weights that target_modules=\['query'\]"),
    ({"target_modules": ["value"]}, "'value' matches no module .* there are .*'query'"),
    ({"target_modules": ["query", "value"]}, "'value' matches no module"),
    ({"target_modules": "query"}, "'query' matches no module"),
    ({"target_modules": ["body"]}, r"matches body \(ModuleDict\), which cannot be adapted"),
    ({"target_modules": ["drop"]}, r"Dropout"),
    ({"modules_to_save": ["tail"]}, "'tail' matches no module with parameters; there are .*'head'"),
    ({"modules_to_save": ["head", "drop"]}, "'drop' matches no module with parameters"),
    ({"modules_to_save": ["body"]}, r"left by .* modules_to_save=\['body'\]"),
    ({"exclude_modules": ["nothing"]}, "'nothing' matches no module"),
    ({"exclude_modules": ["query"]}, r"left by exclude_modules=\['query'\]"),
    ({"slices": {"query": [[0, 7]]}}, r"slices reach to 7, but body\.query\.weight has 6"),
    ({"slices": {"head": [[0, 1]]}}, "'head' matches none of the adapted layers"),
    ({"slices": {"query": [[0, 1]], "body.query": [[0, 1]]}}, "both match"),
    ({"target_modules": ["words"], "modules_to_save": ["out"]}, r"words\.weight is tied to .*\['out'\]"),
]


@pytest.mark.parametrize(("change", "said"), FITS)
def test_a_config_that_does_not_fit(change: dict[str, Any], said: str, state_of: Any) -> None:
    model = net()
    state = state_of(model)
    with pytest.raises(ValueError, match=said):
        attach(model, GPartConfig(**{"d": 5, "target_modules": ["query"], **change}))
    state.assert_kept()


def _parametrized() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


LAYERS = [
    (lambda: nn.Embedding(5, 4, sparse=True), "sparse=True"),
    (lambda: nn.Embedding(5, 4, max_norm=1.5), r"max_norm=1\.5"),
    (lambda: nn.LazyLinear(4), "has no shape yet"),
    (lambda: nn.LSTM(4, 4), "LSTM"),
    (_parametrized, "is parametrized already"),
    (lambda: _integer(), r"torch\.int8"),
]


def _integer() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(("build", "said"), LAYERS)
def test_a_layer_that_cannot_be_adapted(build: Any, said: str) -> None:
    model = nn.ModuleDict({"a": build(), "b": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=said):
        attach(model, GPartConfig(d=2, target_modules=["a"]))
    assert list(model) == ["a", "b"]
    assert model["b"].weight.requires_grad


def test_names_and_second_adapters(state_of: Any) -> None:
    model, config = net(), GPartConfig(d=5, target_modules=["query"])
    with pytest.raises(ValueError, match=r"must be an identifier.*'a\.b'"):
        attach(model, config, name="a.b")
    adapter = attach(model, config)
    state = state_of(model)
    for name in ("default", "other"):
        with pytest.raises(ValueError, match=rf"'{name}'.*\['default'\]"):
            attach(model, config, name=name)
    state.assert_kept()
    with pytest.raises(ValueError, match=r"'nothing' is not adapted.*body\.query\.weight"):
        adapter.delta("nothing")
    taken = net()
    taken["gpart"] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="already holds Linear"):
        attach(taken, config)


def test_the_forgotten_head_is_named(tmp_path: Path, state_of: Any) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    state = state_of(model)
    config = {"d": 5, "target_modules": ["query", "value"]}
    with pytest.raises(ValueError, match=r"\['classifier\.weight', 'classifier\.bias'\].*at random"):
        attach(model, GPartConfig(**config))
    state.assert_kept()
    attach(model, GPartConfig(**config, modules_to_save=["classifier"])).detach()
    # A model that is random as a whole has no forgotten part.
    attach(BertForSequenceClassification(model.config), GPartConfig(**config))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0, 1, 0), "size"),
        ((5, 6, 0), "5; got d=6"),
        ((5, 0, 0), "d=0"),
        ((5, 5, -1), "got -1"),
        ((2**40, 2**31, 0), "int32"),
    ],
)
def test_partitions(numbers: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Partition(*numbers)
    with pytest.raises(ValueError, match="positions 3 to 6 are not within 0 to 5"):
        Partition(5, 2).groups(3, 6)
