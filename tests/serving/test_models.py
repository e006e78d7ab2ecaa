"""Which task a base is for, how many labels its head gets, and that nothing of its folder is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from served_models import TEXT, bert_adapters, bert_folder, spoil

from gpart import GPartConfig, attach
from gpart.errors import GPartError
from gpart.serialization import folder as serialization
from gpart.serving import names
from gpart.serving.models import labels_in, load_model, make_task, read_config, task_of, untrained
from gpart.serving.requests import Limits
from gpart.serving.store import AdapterStore


def config(folder: Path, **values: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("kind", "written", "task"),
    [
        ("bert", ["BertForSequenceClassification"], "text-classification"),
        ("llama", ["LlamaForCausalLM"], "generation"),
        ("llama", ["LlamaForSequenceClassification"], "text-classification"),
        ("gpt2", ["GPT2LMHeadModel"], "generation"),
        ("vit", ["ViTForImageClassification"], "image-classification"),
        ("vit", ["ViTModel"], "image-classification"),
        ("dinov2", None, "image-classification"),
    ],
)
def test_the_task_is_what_the_class_was_made_for(tmp_path: Path, kind: str, written: object, task: str) -> None:
    read = read_config(str(config(tmp_path / "m", model_type=kind, architectures=written)))
    assert task_of(read) == task
    assert task_of(read, task) == task


def test_what_cannot_be_served(tmp_path: Path) -> None:
    bert = read_config(str(config(tmp_path / "bert", model_type="bert", architectures=["BertModel"])))
    with pytest.raises(GPartError, match=r"\['BertModel'\] says no task: give --task text-classification, generation"):
        task_of(bert)
    with pytest.raises(GPartError, match="a bert model cannot be served for image-classification"):
        task_of(bert, "image-classification")
    with pytest.raises(GPartError, match="is no model that Transformers can read"):
        read_config(str(tmp_path))
    with pytest.raises(GPartError, match="is no model that Transformers can read"):
        read_config(str(config(tmp_path / "new", model_type="never-heard-of")))


def test_code_in_a_models_folder_is_not_run(tmp_path: Path) -> None:
    folder = config(
        tmp_path / "m", model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    )
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(GPartError):
        read_config(str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_adapters_tell_the_number_of_labels(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = bert_folder(tmp_path / "base", labels=2, head=False)
    read = read_config(str(base))
    (tmp_path / "all").mkdir()
    store = AdapterStore(tmp_path / "all")
    assert labels_in(store, read, "text-classification") is None  # there is none
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=4)
    attach(model, TEXT).save(tmp_path / "all" / "b-four")
    attach(AutoModelForSequenceClassification.from_pretrained(base, num_labels=4), TEXT).save(
        tmp_path / "all" / "a-broken"
    )
    spoil(tmp_path / "all" / "a-broken")
    assert labels_in(store, read, "text-classification") == 4
    read.num_labels = 4
    assert labels_in(store, read, "text-classification") is None  # the model has as many already
    assert labels_in(store, read, "generation") is None


def test_adapters_without_a_head_tell_nothing(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = bert_folder(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base)
    attach(model, GPartConfig(d=9, target_modules=["query"])).save(tmp_path / "all" / "a")
    assert labels_in(AdapterStore(tmp_path / "all"), read_config(str(base)), "text-classification") is None


def test_a_loaded_model_is_frozen_in_eval_mode_and_in_the_dtype(tmp_path: Path) -> None:
    base = bert_folder(tmp_path / "base")
    read = read_config(str(base))
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_model(str(base), "text-classification", read, dtype)
        assert not model.training
        assert {value.dtype for value in model.parameters()} == {expected}
        assert not any(value.requires_grad for value in model.parameters())
        assert untrained(model) == ""


def test_bfloat16_serves_adapters_that_were_trained_in_float32(tmp_path: Path) -> None:
    from gpart.serving.api import Settings, make_engine

    bert_folder(tmp_path / "base")
    bert_adapters(tmp_path / "base", tmp_path / "all", ["a"])
    engine = make_engine(Settings(str(tmp_path / "base"), str(tmp_path / "all"), dtype="bfloat16"))
    (answer,) = engine.answer([engine.read({"text": "film", "adapter": "a"})])
    assert isinstance(answer, dict)
    assert engine.switch.active == "a"


def test_what_has_no_tokenizer(tmp_path: Path) -> None:
    base = bert_folder(tmp_path / "base")
    for file in base.glob("*token*"):
        file.unlink()
    for file in base.glob("vocab*"):
        file.unlink()
    read = read_config(str(base))
    with pytest.raises(GPartError, match="has no tokenizer: the one that Transformers makes for it knows no word"):
        make_task(str(base), "text-classification", read, Limits())


def test_what_has_no_image_processor(tmp_path: Path) -> None:
    base = config(tmp_path / "m", model_type="vit", architectures=["ViTModel"])
    with pytest.raises(GPartError, match="has nothing that prepares inputs for image-classification"):
        make_task(str(base), "image-classification", read_config(str(base)), Limits())


def test_a_config_of_which_nothing_can_be_built(tmp_path: Path) -> None:
    base = config(tmp_path / "m", model_type="bert", hidden_size=8, num_attention_heads=3)
    with pytest.raises(GPartError, match="a bert model cannot be built from its config"):
        labels_in(AdapterStore(tmp_path), read_config(str(base)), "text-classification")


def test_the_file_names_are_the_adapter_folders() -> None:
    assert (names.CONFIG, names.TENSORS) == (serialization.CONFIG, serialization.TENSORS)
