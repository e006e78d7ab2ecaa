"""Layers inside torch's wrapper for activation checkpointing: the same names, files and bits as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import BitFit, GPartCallback, LinearProbe
from gpart.injection.names import named_modules, plain_name

SETTINGS: dict[str, Any] = {"d": 10, "target_modules": ["0.0", "1"], "modules_to_save": ["2"]}


def build() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=0.0), nn.Tanh())
    return nn.Sequential(block, nn.Linear(16, 16), nn.Linear(16, 2))


def wrap(net: nn.Sequential) -> nn.Sequential:
    """A block, an adapted layer, and the head."""
    for index in range(3):
        net[index] = checkpoint_wrapper(net[index])
    return net


class Module(LightningModule):
    def __init__(self, when: str = "") -> None:
        super().__init__()
        self.when = when
        self.net = wrap(build()) if when == "before" else build()

    def configure_model(self) -> None:
        if self.when == "after":
            wrap(self.net)
            self.when = ""

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


@pytest.fixture
def fit(lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> Any:
    def run(method: Any, when: str, name: str, path: Path | None = None) -> tuple[Module, dict[str, Any]]:
        module = Module(when)
        trainer = lit_trainer(method, max_epochs=2 if path else 1)
        trainer.fit(module, lit_loader(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        return module, torch.load(tmp_path / f"{name}.ckpt", weights_only=True)

    return run


@pytest.mark.parametrize("when", ["before", "after"])
def test_files_and_bits_are_those_of_plain_layers(when: str, fit: Any, tmp_path: Path) -> None:
    methods = [GPartCallback(**SETTINGS, save_folder=str(tmp_path / name)) for name in ("plain", "wrapped")]
    module, plain = fit(methods[0], "", "plain")
    wrapped_module, wrapped = fit(methods[1], when, "wrapped")
    assert methods[1].adapter.plan == methods[0].adapter.plan
    # No frozen weight is in it, and the keys are the same; a batch norm in a checkpointed block counts twice.
    assert list(wrapped["state_dict"]) == list(plain["state_dict"])
    assert not [key for key in wrapped["state_dict"] if "original" in key or key.endswith("net.1.weight")]
    for key, value in plain["state_dict"].items():
        assert torch.equal(wrapped["state_dict"][key], value) or "num_batches" in key, key
    assert wrapped["gpart"]["manifest"] == plain["gpart"]["manifest"]
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "wrapped")]
    assert list(files[0]) == list(files[1])
    # Each goes on from the other's file, and a folder loads into plain and wrapped layers.
    for source, target in (("plain", when), ("wrapped", "")):
        fit(GPartCallback(**SETTINGS), target, "resumed", tmp_path / f"{source}.ckpt")
        net = wrap(build()) if target else build()
        assert torch.equal(load_adapter(net, tmp_path / source).theta, methods[0].adapter.theta)
    for net, method in ((module.net, methods[0]), (wrapped_module.net, methods[1])):
        method.adapter.merge_and_unload()
        assert not [name for name, _ in net.named_modules() if "parametrizations" in name]
    for (name, value), (other, same) in zip(
        module.net.named_parameters(), wrapped_module.net.named_parameters(), strict=True
    ):
        assert name == plain_name(other)
        assert torch.equal(value, same)


def test_detach_puts_a_wrapped_model_back() -> None:
    net = wrap(build())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    names = [name for name, _ in net.named_parameters()]
    adapter = attach(net, GPartConfig(**SETTINGS))
    assert [path for path, _ in named_modules(net) if "_checkpoint" in path] == []
    with torch.no_grad():
        adapter.theta.add_(1.0)
        net[2].weight.add_(1.0)
    net(torch.randn(4, 8)).sum().backward()
    assert adapter.theta.grad is not None
    adapter.detach()
    assert [name for name, _ in net.named_parameters()] == names
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("method", [LinearProbe, BitFit])
def test_other_methods_leave_out_the_frozen_weights_too(method: Any, fit: Any, tmp_path: Path) -> None:
    _, plain = fit(method(modules_to_save=["2"]), "", "plain")
    _, wrapped = fit(method(modules_to_save=["2"]), "before", "wrapped")
    assert list(wrapped["state_dict"]) == list(plain["state_dict"])
    fit(method(modules_to_save=["2"]), "", "resumed", tmp_path / "wrapped.ckpt")
