"""Names, second adapters, forgotten heads, partitions: what is refused, and the model as it was.

What a user can get wrong in settings, files and data stands in one table, in test_bad_input.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from gpart import GPartConfig, Partition, attach


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.ModuleDict({"query": nn.Linear(4, 6)}), "head": nn.Linear(6, 2)})


def test_names_and_second_adapters(state_of: Any) -> None:
    model, config = net(), GPartConfig(d=5, target_modules=["query"])
    with pytest.raises(ValueError, match=r"an adapter's name consists of.*'a\.b'"):
        attach(model, config, name="a.b")
    for name in ("keys", "training", "forward", 5):
        untouched = state_of(model)
        with pytest.raises(ValueError, match=rf"name consists of.*{name!r}"):
            attach(model, config, name=name)
        untouched.assert_kept()
    adapter = attach(model, config)
    state = state_of(model)
    with pytest.raises(ValueError, match=r"'default'.*\['default'\]"):
        attach(model, config, name="default")
    state.assert_kept()
    with pytest.raises(ValueError, match=r"'nothing' is not adapted.*body\.query\.weight"):
        adapter.delta("nothing")
    taken = net()
    taken["body"]["query"].add_module("gpart", nn.Linear(2, 2))
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
