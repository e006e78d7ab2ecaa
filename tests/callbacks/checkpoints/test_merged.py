"""Merged checkpoints and merging at the end: any reader of Lightning takes them, and fit resumes to the bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import nn

from gpart import load_adapter
from gpart.callbacks import load_from_checkpoint
from gpart.errors import GPartError

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def fit(folder: Path, trainer: Any, method: Any, module: Any, loader: Any, *more: Any, **run: Any) -> Any:
    epochs = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    made = trainer(method, epochs, *more, max_epochs=3, enable_checkpointing=True)
    made.fit(module, loader(), **run)
    return made


@pytest.mark.parametrize("first", ["adapter", "merged"])
@pytest.mark.parametrize("second", ["adapter", "merged"])
def test_fit_resumes_to_the_bit_from_either(
    first: str, second: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    whole, resumed = lit_class(), lit_class()
    fit(tmp_path / "a", lit_trainer, lit_gpart(checkpoints=first), whole, lit_loader)
    path = tmp_path / "a" / "epoch=0.ckpt"
    fit(tmp_path / "b", lit_trainer, lit_gpart(checkpoints=second), resumed, lit_loader, ckpt_path=path)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert list(expected) == list(found)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_any_reader_takes_a_merged_checkpoint(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module = lit_class()
    fit(tmp_path, lit_trainer, lit_gpart(checkpoints="merged"), module, lit_loader)
    path, expected = tmp_path / "epoch=2.ckpt", module.eval().net(X)
    assert list(torch.load(path)["state_dict"]) == list(lit_class().state_dict())
    assert torch.equal(lit_class.load_from_checkpoint(path).eval().net(X), expected)
    plain = lit_class()
    lit_trainer().test(plain, lit_loader(), ckpt_path=path, verbose=False)
    assert torch.equal(plain.eval().net(X), expected)
    assert torch.equal(load_from_checkpoint(lit_class, path).eval().net(X), expected)
    network = lit_class().net
    load_adapter(network, path)
    assert torch.equal(network.eval()(X), expected)


class Ensemble(nn.Module):
    """A project's own object around the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([net])


@pytest.mark.parametrize(
    "wrap",
    [lambda net: net, lambda net: {"nets": [net]}, lambda net: partial(nn.Sequential, net), Ensemble],
    ids=["itself", "in a list", "in a partial", "in a module"],
)
def test_a_network_among_the_hyperparameters_is_written_without_the_adapter(
    wrap: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    """Lightning's reader builds the module from the network in the file."""

    def network_in(given: Any) -> nn.Module:
        if isinstance(given, dict):
            return given["nets"][0]
        if isinstance(given, partial):
            return given.args[0]
        return given.parts[0] if isinstance(given, Ensemble) else given

    class Given(lit_class):
        def __init__(self, given: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = network_in(given)

    module = Given(given := wrap(lit_class().net))
    fit(tmp_path, lit_trainer, lit_gpart(module="net", checkpoints="merged"), module, lit_loader)
    assert network_in(given) is module.net
    path, expected = tmp_path / "epoch=2.ckpt", module.eval().net(X)
    loaded = Given.load_from_checkpoint(path, weights_only=False)
    assert list(loaded.state_dict()) == list(lit_class().state_dict())
    assert [type(one) for one in loaded.net.modules()] == [type(one) for one in lit_class().net.modules()]
    assert torch.equal(loaded.eval().net(X), expected)
    assert torch.equal(load_from_checkpoint(Given, path, weights_only=False).eval().net(X), expected)


def test_a_shared_weight_is_merged_under_each_name(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Aliased(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.weight = self.net[0].weight

    module = Aliased()
    fit(tmp_path, lit_trainer, lit_gpart(module="net", checkpoints="merged"), module, lit_loader)
    state = torch.load(tmp_path / "epoch=2.ckpt")["state_dict"]
    assert torch.equal(state["weight"], module.net[0].weight)
    assert torch.equal(state["net.0.weight"], module.net[0].weight)


@pytest.mark.parametrize("module", ["net", ""])
def test_where_theta_stands_in_a_shared_module_no_name_of_it_is_left(
    module: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Shared(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({"same": self.net[0]})  # theta's holder: the Sequential is iterated

        def forward(self, x: Any) -> Any:
            assert [name for name, _ in self.named_children()] == ["net", "layers"]
            return super().forward(x)

    trained = Shared()
    first = "0" if module else "net.0"
    line = {"module": module, "target_modules": [first], "modules_to_save": [first[:-1] + "3"], "checkpoints": "merged"}
    fit(tmp_path, lit_trainer, lit_gpart(**line), trained, lit_loader)
    assert sum(key.endswith(".theta") for key in trained.state_dict()) == 2
    path, expected = tmp_path / "epoch=2.ckpt", trained.eval().net(X)
    assert list(torch.load(path)["state_dict"]) == list(Shared().state_dict())
    assert torch.equal(Shared.load_from_checkpoint(path).eval().net(X), expected)


def test_a_changed_bit_of_theta_in_a_merged_file_is_refused(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    fit(tmp_path, lit_trainer, lit_gpart(checkpoints="merged"), lit_class(), lit_loader)
    checkpoint = torch.load(tmp_path / "epoch=2.ckpt")
    checkpoint["gpart"]["tensors"]["0.gpart.default.theta"][0] += 1
    torch.save(checkpoint, path := tmp_path / "b.ckpt")
    with pytest.raises(GPartError, match=r"b\.ckpt was changed"):
        load_adapter(lit_class().net, path)
    with pytest.raises(GPartError, match=r"b\.ckpt was changed"):
        lit_trainer(lit_gpart()).test(lit_class(), lit_loader(), ckpt_path=path)


def test_merge_at_end_leaves_a_plain_module(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module, merged = lit_class(), lit_class()
    fit(tmp_path / "a", lit_trainer, lit_gpart(), module, lit_loader)
    trainer = fit(tmp_path / "b", lit_trainer, lit_gpart(checkpoints="merged", merge_at_end=True), merged, lit_loader)
    assert list(merged.state_dict()) == list(lit_class().state_dict())
    assert [type(one) for one in merged.modules()] == [type(one) for one in lit_class().modules()]
    assert all(value.requires_grad for value in merged.parameters())
    expected = module.eval().net(X)
    assert torch.equal(merged.eval().net(X), expected)
    for path in (None, "best"):
        trainer.test(merged, lit_loader(), ckpt_path=path, verbose=False)
        assert type(merged.net[0]) is nn.Linear
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert torch.equal(lit_class.load_from_checkpoint(tmp_path / "c.ckpt").eval().net(X), expected)


@pytest.mark.parametrize("started", [False, True])
def test_a_search_for_a_learning_rate_merges_nothing(
    started: bool, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    first = lit_class()
    lit_trainer(lit_gpart(save_folder=str(tmp_path / "start")), max_epochs=1).fit(first, lit_loader())
    module, expected = lit_class(), first.net[0].weight.detach().clone()
    base = module.net[0].weight.detach().clone()
    settings = {"adapter": str(tmp_path / "start"), "d": None, "target_modules": None, "modules_to_save": None}
    method = lit_gpart(merge_at_end=True, **(settings if started else {}))
    trainer = lit_trainer(method, max_epochs=1)
    Tuner(trainer).lr_find(module, lit_loader(), num_training=5)
    assert method.adapter.attached
    assert torch.equal(module.net[0].weight.detach(), expected if started else base)
    module.lr = module.hparams.lr = 0.0  # the fit changes nothing, so that what is merged is known
    trainer.fit(module, lit_loader())
    assert type(module.net[0]) is nn.Linear
    assert torch.equal(module.net[0].weight, expected if started else base)


def test_after_an_exception_the_adapter_stays(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Fails(Callback):
        def on_train_epoch_end(self, *given: Any) -> None:
            raise KeyError("here")

    module, method = lit_class(), lit_gpart(merge_at_end=True)
    with pytest.raises(KeyError, match="here"):
        fit(tmp_path, lit_trainer, method, module, lit_loader, Fails())
    assert method.adapter.attached


def test_after_merge_and_unload_a_trainer_writes_a_plain_module(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module, method = lit_class(), lit_gpart()
    trainer = fit(tmp_path, lit_trainer, method, module, lit_loader)
    method.adapter.merge_and_unload()
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    found = lit_class.load_from_checkpoint(tmp_path / "plain.ckpt")
    assert torch.equal(found.eval().net(X), module.eval().net(X))
    with pytest.raises(GPartError, match=r"epoch=2\.ckpt holds an adapter, and the one of .* was merged or taken off"):
        trainer.test(module, lit_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)


def test_an_unknown_word_is_named(lit_gpart: Any) -> None:
    with pytest.raises(GPartError, match="'adapter' or 'merged', got 'both'"):
        lit_gpart(checkpoints="both")


@pytest.mark.parametrize("written", ["adapter", "merged"])
def test_a_checkpoint_of_a_merged_adapter_holds_theta_and_is_read_after_unmerge(
    written: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module, method = lit_class(), lit_gpart(checkpoints=written)
    trainer = fit(tmp_path, lit_trainer, method, module, lit_loader)
    expected = module.eval().net(X).detach()
    method.adapter.merge()
    trainer.save_checkpoint(path := tmp_path / "while-merged.ckpt")
    assert torch.equal(load_from_checkpoint(lit_class, path).eval().net(X), expected)
    load_adapter(network := lit_class().net, path)
    assert torch.equal(network.eval()(X), expected)
    with pytest.raises(GPartError, match=r"epoch=0\.ckpt holds a theta, and adapter 'default' is merged: unmerge\(\)"):
        trainer.test(module, lit_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert torch.equal(module.eval().net(X), expected)
    method.adapter.unmerge()
    trainer.test(module, lit_loader(), ckpt_path=path, verbose=False)
    assert torch.equal(module.eval().net(X), expected)
