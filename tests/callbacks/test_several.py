"""Several adapters of one network, each trained by a callback of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import two_adapters
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel
from two_adapters import Project, callbacks

from gpart import GPartConfig, GPartError, active_adapters, attach, get_adapters, load_adapter, set_active
from gpart.callbacks import GPartCallback, load_from_checkpoint
from gpart.callbacks.baselines import LinearProbe

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(X, (X.sum(1) > 0).long())


def fit(module: LightningModule, used: list[Any], folder: Path, epochs: int = 2, **more: Any) -> Trainer:
    return two_adapters.fit(module, DATA, used, folder, epochs, **more)


def test_trained_together_saved_and_loaded(tmp_path: Path) -> None:
    module, used = Project(), callbacks()
    base = {key: value.clone() for key, value in module.state_dict().items()}
    fit(module, used, tmp_path)
    adapters = get_adapters(module.net)
    assert active_adapters(module.net) == {"first": 1.0, "second": 1.0}
    assert all(adapter.theta.abs().min() > 0 for adapter in adapters.values())
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    kept = [key for key in state if not key.startswith("This checkpoint")]
    assert sorted(kept) == [
        "net.head.bias",
        "net.head.weight",
        "net.one.gpart.first.theta",
        "net.one.gpart.second.theta",
    ]
    loaded = load_from_checkpoint(Project, tmp_path / "epoch=1.ckpt")
    assert active_adapters(loaded.net) == {"first": 1.0, "second": 1.0}
    assert torch.equal(loaded(X), module(X))
    for name, adapter in adapters.items():  # each alone, out of the same file
        fresh = Project()
        load_adapter(fresh.net, tmp_path / "epoch=1.ckpt", name=name)
        set_active(module.net, name)
        assert torch.equal(fresh(X), module(X)), name
        assert torch.equal(get_adapters(fresh.net)[name].theta, adapter.theta)
        again = load_adapter(Project().net, f"{tmp_path / 'epoch=1.ckpt'}:{name}", name="other")
        assert again.name == "other"
        assert torch.equal(again.theta, adapter.theta)
    with pytest.raises(
        GPartError, match=r"several adapters, \['first', 'second'\]: name one of them, as .*1\.ckpt:first"
    ):
        load_adapter(Project().net, tmp_path / "epoch=1.ckpt")
    set_active(module.net, [])
    assert all(torch.equal(base[key], value) for key, value in module.state_dict().items() if key in base)


def test_each_may_start_from_another_ones_numbers(tmp_path: Path) -> None:
    fit(Project(), callbacks(), tmp_path / "run", epochs=1)
    source = load_adapter(Project().net, f"{tmp_path / 'run' / 'epoch=0.ckpt'}:second", name="default")
    with torch.no_grad():
        for number in (1, 2):
            source.theta.fill_(number)
            source.save(tmp_path / str(number))
    module = Project()
    used = [GPartCallback(adapter=str(tmp_path / str(number)), name=f"from-{number}") for number in (1, 2)]
    fit(module, used, tmp_path / "again", epochs=1)  # four steps of at most 0.05 and a little
    found = {name: round(float(adapter.theta.mean().detach())) for name, adapter in get_adapters(module.net).items()}
    assert found == {"from-1": 1, "from-2": 2}
    one = GPartCallback(adapter=f"{tmp_path / 'run' / 'epoch=0.ckpt'}:second")
    fit(module := Project(), [one], tmp_path / "one", epochs=1)
    assert list(get_adapters(module.net)) == [one.name] == ["second"]


class NewHead(LightningModule):
    """A pretrained BERT whose classifier Transformers initialises at random."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens = (batch[0].abs() * 9).long() % 20
        return self.model(input_ids=tokens, labels=batch[1]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)


def test_a_new_head_belongs_to_the_adapter_that_saves_it(tmp_path: Path) -> None:
    """The random head is no part of the other adapter's base, and the pretrained pooler stays a part of it."""
    size = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    BertModel(BertConfig(**size)).save_pretrained(tmp_path / "base")
    module = NewHead(str(tmp_path / "base"))
    fit(
        module,
        [
            GPartCallback(d=5, target_modules=["query"], modules_to_save=["classifier"], name="task"),
            GPartCallback(d=4, target_modules=["value"], seed=1, name="style"),
        ],
        tmp_path,
    )
    tokens = torch.arange(12).view(2, 6)

    def answers(model: Any) -> Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=tokens).logits

    adapters = get_adapters(module.model)
    assert "classifier.weight" not in adapters["style"].plan.frozen
    assert "bert.pooler.dense.weight" in adapters["style"].plan.frozen
    assert torch.equal(answers(load_from_checkpoint(NewHead, tmp_path / "epoch=1.ckpt").model), answers(module.model))
    for name, adapter in adapters.items():
        adapter.save(tmp_path / name)
    fresh = NewHead(str(tmp_path / "base")).model
    with pytest.raises(GPartError, match="classifier"):  # alone, its head would be random
        load_adapter(fresh, tmp_path / "style", name="style")
    for name in adapters:
        load_adapter(fresh, tmp_path / name, name=name)
    set_active(fresh, list(adapters))
    assert torch.equal(answers(fresh), answers(module.model))


def test_a_resumed_fit_ends_on_the_same_bits(tmp_path: Path) -> None:
    whole = Project()
    fit(whole, callbacks(), tmp_path / "whole", epochs=3)
    first = Project()
    fit(first, callbacks(), tmp_path / "parts", epochs=1)
    second = Project()
    fit(second, callbacks(), tmp_path / "parts", epochs=3, ckpt_path=tmp_path / "parts" / "epoch=0.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_the_file_of_other_adapters_is_refused(tmp_path: Path) -> None:
    fit(Project(), callbacks(), tmp_path, epochs=1)
    other = GPartCallback(d=7, target_modules=["one", "two"], seed=5, name="third")
    with pytest.raises(
        GPartError, match=r"holds the adapters \['first', 'second'\], and the module carries \['first', 't"
    ):
        fit(Project(), [callbacks()[0], other], tmp_path / "b", ckpt_path=tmp_path / "epoch=0.ckpt")
    with pytest.raises(GPartError, match=r"holds the adapters .* and the module carries \['first'\]"):
        fit(Project(), callbacks()[:1], tmp_path / "b", ckpt_path=tmp_path / "epoch=0.ckpt")
    changed = GPartCallback(d=7, target_modules=["one", "two"], seed=6, name="second")
    with pytest.raises(GPartError, match="seed is 5 and 6"):
        fit(Project(), [callbacks()[0], changed], tmp_path / "b", ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_changed_tensor_of_one_is_found(tmp_path: Path) -> None:
    fit(Project(), callbacks(), tmp_path, epochs=1)
    path = tmp_path / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["gpart"]["adapters"][1]["tensors"] = {
        key: value + 1 for key, value in checkpoint["gpart"]["adapters"][1]["tensors"].items()
    }
    torch.save(checkpoint, path)
    with pytest.raises(GPartError, match="was changed: its state has SHA-256"):
        load_from_checkpoint(Project, path)
    with pytest.raises(GPartError, match="was changed: its state has SHA-256"):
        load_adapter(Project().net, path, name="second")


def test_an_adapter_from_before_stays_beside_the_trained_one(tmp_path: Path) -> None:
    module = Project()
    style = attach(module.net, GPartConfig(d=5, target_modules=["two"]), name="style")
    with torch.no_grad():
        style.theta.fill_(0.3)
    style.theta.requires_grad_(False)
    before = style.theta.detach().clone()
    used = GPartCallback(d=9, target_modules=["one"], modules_to_save=["head"])
    module.configure_optimizers = lambda: torch.optim.SGD(  # type: ignore[method-assign]
        [value for name, value in module.named_parameters() if value.requires_grad and "style" not in name], lr=0.1
    )
    fit(module, [used], tmp_path, epochs=1)
    assert active_adapters(module.net) == {"style": 1.0, "default": 1.0}
    assert torch.equal(style.theta, before)
    assert used.adapter.theta.abs().max() > 0
    loaded = load_from_checkpoint(Project, tmp_path / "epoch=0.ckpt")
    assert torch.equal(loaded(X), module(X))


def test_what_a_trainer_does_not_take(tmp_path: Path) -> None:
    first, second = callbacks()
    for used, match in (
        ([first, GPartCallback(d=3, target_modules=["two"], name="first")], "two GPartCallbacks have the name 'first'"),
        ([first, LinearProbe(modules_to_save=["head"])], "one method at a time"),
        (
            [first, GPartCallback(d=3, target_modules=["two"], name="b", module="net")],
            "may contain each other, None and .net.",
        ),
        (
            [first, GPartCallback(d=3, target_modules=["two"], name="b", modules_to_save=["head"])],
            "both have a head.bias of their own",
        ),
        (
            [second, GPartCallback(d=3, target_modules=["two"], name="b", checkpoints="merged")],
            "holds one adapter's W0",
        ),
    ):
        with pytest.raises(GPartError, match=match):
            fit(Project(), used, tmp_path)


def test_merged_at_the_end_with_both(tmp_path: Path) -> None:
    module = Project()
    fit(module, callbacks(merge_at_end=True), tmp_path, epochs=1)
    assert not get_adapters(module.net)
    assert type(module.net["one"]) is nn.Linear
    assert torch.equal(load_from_checkpoint(Project, tmp_path / "epoch=0.ckpt")(X), module(X))
