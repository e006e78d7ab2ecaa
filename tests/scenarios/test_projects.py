"""Projects of every kind train by the callback alone, and to the numbers that the method's formulas give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

from gpart import get_adapters
from gpart.callbacks import GPartCallback, LinearProbe, load_from_checkpoint
from gpart.injection.names import get_parameter
from gpart.lightning_modules import SequenceClassifier

RATE, STEPS, D_SMALL = 0.1, 3, 12


def cross_entropy(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def own_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return model(input_ids=batch[0], labels=batch[1]).loss


def bert_config() -> BertConfig:
    # A wider start than usual, so that so small a network's attention has gradients that count.
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes["initializer_range"] = 0.5
    return BertConfig(vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.3}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, eos_token_id=1, **sizes, **no_dropout))


def vit() -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=3)
    for weight in (model.head.weight, *[block.attn.qkv.weight for block in model.blocks]):
        nn.init.normal_(weight, std=0.3)
    return model


LABELS = torch.arange(12) % 3
# A generator of their own: what other test modules draw while they are collected must not change them.
_DRAWN = torch.Generator().manual_seed(0)
IMAGES, LARGER = (torch.randn(12, 3, size, size, generator=_DRAWN) for size in (32, 48))
TOKENS = torch.randint(2, 50, (12, 8), generator=_DRAWN)
# How it is built, its loss, its data, target_modules, modules_to_save, and which parameters the targets are, in order.
PROJECTS: dict[str, tuple[Any, ...]] = {
    "torchvision CNN": (
        lambda: resnet18(weights=None, num_classes=3),
        cross_entropy,
        [LARGER, LABELS],
        ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.downsample.0"],
        ["fc"],
        ["layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight"],
    ),
    "Hugging Face classifier": (
        lambda: BertForSequenceClassification(bert_config()).train(),
        own_loss,
        [TOKENS, LABELS % 2],
        ["query", "value"],
        ["classifier"],
        [f"bert.encoder.layer.{i}.attention.self.{name}.weight" for i in range(2) for name in ("query", "value")],
    ),
    "GPT-2": (
        gpt2,
        own_loss,
        [TOKENS, TOKENS],
        ["c_attn"],
        ["ln_f"],
        [f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)],
    ),
    "timm ViT": (
        vit,
        cross_entropy,
        [IMAGES, LABELS],
        ["qkv"],
        ["head"],
        [f"blocks.{i}.attn.qkv.weight" for i in range(2)],
    ),
}


class Project(LightningModule):
    """A project that never heard of GPart."""

    def __init__(self, build: Callable[[], nn.Module], loss: Callable[[nn.Module, list[Tensor]], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.loss, self.model = loss, build()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=RATE)


def batches(data: list[Tensor]) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=4)


def trained_by_formulas(project: Project, data: list[Tensor], names: list[str], saved: list[str], dense: Any) -> Tensor:
    """theta after the steps: the gradient of every dense weight, then Pᵀ of it; the model is left as W0 + P·theta."""
    model, theta = project.model, torch.zeros(D_SMALL)
    parameters = dict(model.named_parameters())
    first = {name: parameters[name].detach().clone() for name in names}
    entries = [(name, ...) for name in names]
    for batch, _ in zip(batches(data), range(STEPS), strict=False):
        project.loss(model, batch).backward()
        theta -= RATE * dense.reduce_named({name: parameters[name].grad for name in names}, entries).float()
        shapes = {name: tuple(first[name].shape) for name in names}
        with torch.no_grad():
            for name, update in dense.expand_named(theta, shapes, entries).items():
                parameters[name].copy_(first[name] + update.float())
            for name in saved:
                parameters[name] -= RATE * parameters[name].grad
        model.zero_grad()
    return theta


@pytest.mark.parametrize("kind", PROJECTS)
def test_it_trains_to_what_the_formulas_give(kind: str, lit_trainer: Any, reference: Any, lit_frozen_kept: Any) -> None:
    build, loss, data, targets, head, names = PROJECTS[kind]
    module = Project(build, loss)
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    callback = GPartCallback(d=D_SMALL, target_modules=targets, modules_to_save=head)
    lit_trainer(callback, max_steps=STEPS).fit(module, batches(data))
    adapter = callback.adapter
    lit_frozen_kept(module.model, before)
    assert [weight.name for weight in adapter.plan.weights] == names

    plain = Project(build, loss)
    dense = reference(sum(before[name].numel() for name in names), D_SMALL)
    theta = trained_by_formulas(plain, data, names, adapter.plan.saved, dense)
    assert theta.norm() > 0.01  # far enough for the later gradients to depend on the earlier steps
    assert theta.count_nonzero() == D_SMALL
    assert (adapter.theta - theta).norm() < 1e-4 * theta.norm()
    now = dict(plain.model.named_parameters())
    for name in adapter.plan.saved:
        assert not torch.equal(now[name], before[name]), name
        assert torch.allclose(get_parameter(module.model, name), now[name], rtol=1e-3, atol=1e-5), name
    for name, buffer in plain.model.named_buffers():
        assert torch.allclose(module.model.get_buffer(name).float(), buffer.float(), rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("module", ["", None])
def test_lightnings_boring_model(module: str | None, lit_trainer: Any) -> None:
    """Its only child is the layer itself, so the network is the whole module."""
    boring, callback = BoringModel(), GPartCallback(d=5, target_modules=["layer"], module=module)
    weight, bias = boring.layer.weight.detach().clone(), boring.layer.bias.detach().clone()
    trainer = lit_trainer(callback)
    trainer.fit(boring)
    trainer.test(boring, verbose=False)
    assert callback.adapter.size == 64
    assert callback.adapter.theta.count_nonzero() == 5
    assert torch.equal(boring.layer.bias, bias)
    assert torch.equal(get_parameter(boring, "layer.weight"), weight)
    assert torch.equal(boring.layer.weight, weight + callback.adapter.delta("layer.weight"))


def test_without_the_callback_the_same_module_trains_in_full(lit_trainer: Any) -> None:
    build, loss, data, *_ = PROJECTS["timm ViT"]
    module = Project(build, loss)
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    lit_trainer().fit(module, batches(data))
    assert not get_adapters(module.model)
    assert [name for name, value in module.model.named_parameters() if torch.equal(value, before[name])] == []


# The package's own module, from a pretrained encoder without a head


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(bert_config()).save_pretrained(folder)
    return str(folder)


def sentences() -> DataLoader:
    return DataLoader([{"input_ids": TOKENS[i], "labels": LABELS[i] % 2} for i in range(12)], batch_size=4)


@pytest.mark.filterwarnings("ignore:.*Some weights")
def test_a_sequence_classifier_trains_saves_and_comes_back(
    encoder: str, tmp_path: Path, lit_trainer: Any, lit_frozen_kept: Any
) -> None:
    torch.manual_seed(0)
    module = SequenceClassifier(encoder, lr=0.01, head_lr=0.02, warmup_ratio=0.0)
    module.configure_model()
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    callback = GPartCallback(d=D_SMALL, target_modules=["query", "value"], modules_to_save=["classifier"])
    trainer = lit_trainer(callback, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(module, sentences())
    lit_frozen_kept(module.model, before)
    assert callback.adapter.theta.count_nonzero() == D_SMALL
    assert not torch.equal(module.model.classifier.weight, before["classifier.weight"])
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [
        1,
        1,
        1,
    ]  # the head, its undecayed bias, theta
    expected = trainer.predict(module, sentences())
    path = trainer.checkpoint_callback.best_model_path
    assert lit_trainer().predict(load_from_checkpoint(SequenceClassifier, path), sentences()) == expected
    fresh = GPartCallback(d=D_SMALL, target_modules=["query", "value"], modules_to_save=["classifier"])
    assert lit_trainer(fresh).predict(SequenceClassifier(encoder), sentences(), ckpt_path=path) == expected


@pytest.mark.filterwarnings("ignore:.*Some weights")
@pytest.mark.parametrize(
    "method",
    [
        lambda: GPartCallback(d=D_SMALL, target_modules=["query", "value"]),
        lambda: GPartCallback(d=D_SMALL, target_modules=["query"], modules_to_save=["pooler"]),
        lambda: LinearProbe(["pooler"]),
    ],
)
def test_a_forgotten_head_is_named(encoder: str, method: Any, lit_trainer: Any) -> None:
    module = SequenceClassifier(encoder)
    with pytest.raises(ValueError, match=r"leaves out \['classifier\.weight', 'classifier\.bias'\], .* at random"):
        lit_trainer(method()).fit(module, sentences())
    assert all(value.requires_grad for value in module.parameters())
    assert "configure_model" not in vars(module)
