"""``target_modules="query-value"``: the attention's query and value projections, whatever a network calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DistilBertConfig,
    GPTBigCodeConfig,
    GPTBigCodeModel,
    Lfm2Config,
    Lfm2Model,
    LlamaConfig,
    ModernBertConfig,
    Phi3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import GPartCallback, PartialFineTuning, PeftCallback
from gpart.callbacks.networks import find_attached
from gpart.errors import GPartError
from gpart.injection.attention import query_value

SMALL = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}


def bert() -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(**SMALL))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (BertConfig(**SMALL), ["query", "value"]),
        (DebertaV2Config(**SMALL), ["query_proj", "value_proj"]),
        (DistilBertConfig(dim=8, n_heads=2, n_layers=2, hidden_dim=8, vocab_size=20), ["q_lin", "v_lin"]),
        (LlamaConfig(**SMALL, pad_token_id=0), ["q_proj", "v_proj"]),
        (ModernBertConfig(**SMALL, pad_token_id=0), ["Wqkv"]),
    ],
)
def test_each_architecture_has_two_matrices_a_layer(config: Any, names: list[str]) -> None:
    adapter = attach(
        AutoModelForSequenceClassification.from_config(config),
        GPartConfig(d=3, target_modules="query-value", modules_to_save="head"),
    )
    assert adapter.config.target_modules == names
    assert adapter.size == 2 * 2 * 8 * 8


def test_encoder_decoder_has_those_of_cross_attention_too() -> None:
    model = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, num_heads=2, num_layers=1, d_ff=8, vocab_size=20))
    assert attach(model, GPartConfig(d=3, target_modules="query-value")).size == 3 * 2 * 8 * 8


def test_it_is_the_adapter_of_the_names() -> None:
    named, found = bert(), bert()
    base = dict(named.named_parameters())
    first = attach(named, GPartConfig(d=5, target_modules=["query", "value"], modules_to_save=["classifier"]))
    second = attach(found, GPartConfig(d=5, target_modules="query-value", modules_to_save=["classifier"]))
    assert first.config == second.config
    for adapter in (first, second):
        with torch.no_grad():
            adapter.theta.copy_(torch.arange(5.0))
    assert all(
        torch.equal(first.delta(name), second.delta(name))
        for name in base
        if name.endswith(("query.weight", "value.weight"))
    )


def test_of_a_fused_layer_the_key_stays() -> None:
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12)})
    adapter = attach(nn.ModuleDict({"attention": model}), GPartConfig(d=2, target_modules="query-value"))
    with torch.no_grad():
        adapter.theta.fill_(1.0)
    rows = adapter.delta("attention.qkv.weight").abs().sum(1)
    assert [bool(row) for row in rows] == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    "model",
    [
        lambda: DebertaModel(DebertaConfig(**SMALL)),
        lambda: GPTBigCodeModel(GPTBigCodeConfig(n_embd=8, n_layer=1, n_head=2, vocab_size=20, multi_query=False)),
    ],
)
def test_a_fused_layer_that_goes_head_by_head_is_not_cut_in_three(model: Any) -> None:
    with pytest.raises(GPartError, match=r"query-value.*name the layers"):
        attach(model(), GPartConfig(d=2, target_modules="query-value"))


def test_a_convolutions_projection_is_no_attention() -> None:
    config = Lfm2Config(
        **SMALL, num_key_value_heads=2, layer_types=["conv", "full_attention"], block_multiple_of=8, pad_token_id=0
    )
    assert query_value(Lfm2Model(config)) == (["q_proj", "v_proj"], {})


def test_own_slices_go_over_those_found() -> None:
    model = nn.ModuleDict({"attention": nn.ModuleDict({"qkv": nn.Linear(4, 12)})})
    config = GPartConfig(d=2, target_modules="query-value", slices={"qkv": [[0, 4]]})
    assert attach(model, config).size == 16


def test_fused_layer_with_shared_keys_is_refused_and_the_model_stays() -> None:
    config = Phi3Config(**SMALL, num_key_value_heads=1, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config)
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(GPartError, match=r"query-value.*qkv_proj"):
        attach(model, GPartConfig(d=2, target_modules="query-value"))
    assert [name for name, _ in model.named_parameters()] == before


def test_a_lone_value_layer_is_no_attention() -> None:
    critic = nn.ModuleDict(
        {"value": nn.Linear(4, 1), "0": nn.ModuleDict({n: nn.Linear(4, 4) for n in ("q_proj", "v_proj")})}
    )
    assert query_value(critic) == (["q_proj", "v_proj"], {})


def test_files_have_the_names(tmp_path: Path) -> None:
    model = bert()
    adapter = attach(model, GPartConfig(d=5, target_modules="query-value", modules_to_save="head"))
    adapter.save(tmp_path)
    assert load_adapter(bert(), tmp_path).config.target_modules == ["query", "value"]


class Project(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(4, 4))
        self.first, self.second = bert(), bert()


def test_another_network_with_such_layers_could_be_meant_and_one_without_could_not() -> None:
    project, asked = Project(), GPartConfig(d=5, target_modules="query-value")
    attach(project.first, asked)
    with pytest.raises(GPartError, match="'second' could be adapted as well"):
        find_attached(project, "default", asked)
    del project.second
    assert find_attached(project, "default", asked) == ("first", project.first)


def test_fused_layers_of_several_widths_are_told_as_what_they_are() -> None:
    """Swin's stages; the error named 'qkv' among the names that it knows and among those that are there."""
    stages = nn.ModuleDict({str(width): nn.ModuleDict({"qkv": nn.Linear(width, 3 * width)}) for width in (4, 8)})
    with pytest.raises(GPartError, match=r"\['qkv'\] of ModuleDict, with weights of \['\[12, 4\]', '\[24, 8\]'\]"):
        query_value(stages)


def test_baselines_take_it_too() -> None:
    trained = PartialFineTuning("query-value").trained(bert())
    assert len(trained) == 4
    assert all(name.endswith(("query.weight", "value.weight")) for name in trained)
    callback = PeftCallback("LORA", "query-value", modules_to_save="head")
    callback.apply(network := bert())
    layers = {path.rpartition(".")[2] for path, one in network.named_modules() if hasattr(one, "lora_A")}
    assert layers == {"query", "value"}


def test_callback_says_so_where_a_network_has_none() -> None:
    callback = GPartCallback(d=2, target_modules="query-value")
    with pytest.raises(GPartError, match="its linear ones are"):
        callback.apply(nn.Sequential(nn.Linear(2, 2)))
