"""Folders of adapters say what they are: to Transformers, to PEFT, and theirs to us."""

from __future__ import annotations

import json
import re

import pytest
import torch
from small_adapter import adapted, base

from gpart import GPartConfig, attach, load_adapter
from gpart.errors import GPartError, GPartFileError


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    attach(model, GPartConfig(d=5, target_modules=["query"])).save(folder)
    return folder


def test_a_models_folder_with_an_adapter_in_it_loads_as_the_model_and_as_the_adapter(bert):
    from transformers import AutoModel, BertModel

    for cls in (AutoModel, BertModel):
        model = cls.from_pretrained(bert)
        assert type(model) is BertModel
        assert load_adapter(model, bert).size == 64
    assert load_adapter(BertModel.from_pretrained(bert), bert / "gpart").size == 64


def test_an_adapter_that_lies_beside_a_model_from_earlier_still_loads(tmp_path):
    (adapter := adapted()).save(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # a model saved into the adapter's folder
    assert torch.equal(load_adapter(base(), tmp_path).theta, adapter.theta)
    with torch.no_grad():
        adapter.theta.add_(1)
    adapter.save(tmp_path)
    assert torch.equal(load_adapter(base(), tmp_path).theta, adapter.theta)  # the newer one


def test_transformers_and_peft_name_the_kind_of_our_folder(bert):
    from peft import PeftConfig, PeftModel
    from transformers import AutoModel, BertModel

    folder = str(bert / "gpart")
    model = BertModel.from_pretrained(bert)
    for read in (PeftConfig.from_pretrained, lambda at: PeftModel.from_pretrained(model, at), model.load_adapter):
        with pytest.raises(Exception, match=r"GPART: .*gpart\.load_adapter"):
            read(folder)
    with pytest.raises(Exception, match=r"a GPart adapter: gpart\.load_adapter"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["LORA", "IA3", "PREFIX_TUNING"])
def test_a_folder_of_peft_is_named_as_such(kind, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 8}))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(
        GPartError, match=re.escape(f"{tmp_path} holds an adapter of PEFT (peft_type {kind}), not of GPart")
    ):
        load_adapter(base(), tmp_path)


def test_other_folders_are_told_by_what_is_in_them(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GPartFileError, match=r"no file adapter_config\.json, but a model's config\.json"):
        load_adapter(base(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"name": "sst-2", "hidden_size": 8}))  # of AdapterHub
    with pytest.raises(GPartError, match=r"no adapter of GPart: the keys .* are \['hidden_size', 'name'\]"):
        load_adapter(base(), tmp_path)
