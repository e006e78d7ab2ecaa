"""The rule that finds a network's head, and that it is the same head for every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPTextConfig,
    CLIPVisionConfig,
    DebertaV2Config,
    Dinov2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    ViTConfig,
)

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import BitFit, GPartCallback, LinearProbe, PeftCallback
from gpart.errors import GPartError
from gpart.heads import head_modules
from gpart.injection.matching import saved_parameters

SMALL: dict[str, Any] = {
    "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20,
}  # fmt: skip
PICTURES: dict[str, Any] = {**SMALL, "image_size": 8, "patch_size": 4}


def bert() -> Any:
    return AutoModelForSequenceClassification.from_config(BertConfig(**SMALL))


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (RobertaConfig(**SMALL), ["classifier"]),  # its dense layer is inside
        (BertConfig(**SMALL), ["bert.pooler", "classifier"]),
        (AlbertConfig(**SMALL, embedding_size=4), ["albert.pooler", "classifier"]),
        (DistilBertConfig(dim=8, n_heads=2, n_layers=1, hidden_dim=8, vocab_size=20), ["pre_classifier", "classifier"]),
        (DebertaV2Config(**SMALL, pooler_hidden_size=8), ["pooler", "classifier"]),  # its pooler is outside
        (GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20), ["score"]),
        (LlamaConfig(**SMALL), ["score"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "-",
)
def test_the_head_is_what_is_outside_the_base_model_and_its_pooler(config: Any, head: list[str]) -> None:
    network = AutoModelForSequenceClassification.from_config(config)
    assert head_modules(network) == head
    # With these parameters the whole network is named: nothing that is random in a new model is left frozen.
    trained = {name for name, _ in network.named_parameters() if name.startswith(tuple(f"{one}." for one in head))}
    base = dict(network.base_model.named_parameters(prefix=network.base_model_prefix))
    assert set(dict(network.named_parameters())) == trained | set(base)


@pytest.mark.parametrize("config", [ViTConfig(**PICTURES), Dinov2Config(**PICTURES)], ids=["ViT", "DINOv2"])
def test_an_image_classifiers_head_is_its_classifier(config: Any) -> None:
    assert head_modules(AutoModelForImageClassification.from_config(config)) == ["classifier"]


def test_a_classifier_around_several_models_has_the_usual_name() -> None:
    vision, text = CLIPVisionConfig(**PICTURES), CLIPTextConfig(**SMALL)
    network = CLIPForImageClassification(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))
    assert head_modules(network) == ["classifier"]


class Convolutional(nn.Module):
    """As Transformers' HGNetV2: no child is the base model, and ``classifier`` has no parameters."""

    base_model_prefix = "hgnetv2"

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        self.classifier = nn.ModuleList([nn.AdaptiveAvgPool2d(1), nn.Flatten()])


def test_a_convolutional_classifier_has_another_usual_name() -> None:
    assert head_modules(Convolutional()) == ["fc"]


def test_timm_tells_its_head() -> None:
    timm = pytest.importorskip("timm")
    assert head_modules(timm.create_model("resnet10t", num_classes=3)) == ["fc"]
    two = timm.create_model("deit_tiny_distilled_patch16_224", img_size=28, patch_size=14, depth=1, embed_dim=12)
    assert head_modules(two) == ["head", "head_dist"]
    without = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(GPartError, match=r"ResNet does not tell which of its modules is the head.*'conv1'"):
        head_modules(without)


def test_a_network_that_does_not_tell_is_refused_with_its_children() -> None:
    network = nn.ModuleDict({"body": nn.Linear(2, 2), "top": nn.Linear(2, 2)})
    with pytest.raises(GPartError, match=r"modules_to_save='head'.*ModuleDict.*\['body', 'top'\]"):
        attach(network, GPartConfig(1, ["body"], modules_to_save="head"))
    assert all(value.requires_grad for value in network.parameters())


def test_an_adapted_networks_head_is_the_same() -> None:
    network = bert()
    attach(network, GPartConfig(5, ["dense"], modules_to_save=["classifier"], exclude_modules=["pooler.dense"]))
    assert head_modules(network) == ["bert.pooler", "classifier"]


def test_through_a_compiled_base() -> None:
    network = bert()
    network.bert = torch.compile(network.bert)
    assert saved_parameters(network, "head")[0] == ["bert.pooler", "classifier"]


def test_the_config_and_the_file_have_the_names_found(tmp_path: Any) -> None:
    network = bert()
    adapter = attach(network, GPartConfig(5, ["query", "value"], modules_to_save="head"))
    assert adapter.config.modules_to_save == ["bert.pooler", "classifier"]
    adapter.save(tmp_path)
    assert '"bert.pooler"' in (tmp_path / "adapter_config.json").read_text()
    fresh = bert()
    fresh.load_state_dict({name: value for name, value in network.state_dict().items() if "gpart" not in name})
    loaded = load_adapter(fresh, tmp_path)
    assert loaded.config == adapter.config


@pytest.mark.parametrize(
    "callback",
    [
        GPartCallback(d=5, target_modules=["query"], modules_to_save="head"),
        LinearProbe("head"),
        BitFit("head"),
        PeftCallback("LORA", ["query"], "head", {"r": 1}),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_every_method_trains_the_same_head(callback: Any) -> None:
    network = bert()
    callback.apply(network)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    dense, linear = ("bert.pooler.dense", 8 * 8 + 8), ("classifier", 8 * 2 + 2)
    assert {f"{name}.{part}" for name, _ in (dense, linear) for part in ("weight", "bias")} <= trained
    callback._network = network
    assert callback.counts()[1] == dense[1] + linear[1]
    assert callback._head_row() == {"head: bert.pooler, classifier": "90"}


def test_an_adapter_attached_with_the_names_is_adopted() -> None:
    network = bert()
    adapter = attach(network, GPartConfig(5, ["query"], modules_to_save=["bert.pooler", "classifier"]))
    callback = GPartCallback(d=5, target_modules=["query"], modules_to_save="head")
    callback.apply(network)
    assert callback.adapter is adapter
    other = GPartCallback(d=5, target_modules=["query"], modules_to_save=["classifier"])
    with pytest.raises(GPartError, match="modules_to_save"):
        other.apply(network)
