"""Files that version 0.1.0 wrote: ``tests/files/make_0_1_0.py`` was run at a673bf0, before manifests had a format.

What is compared bit for bit was computed there without a matrix product, so it is the same on every CPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import GPartConfig, active_adapters, attach, load_adapter, set_active
from gpart.callbacks import GPartCallback, load_from_checkpoint
from gpart.errors import GPartError
from gpart.serialization.folder import read_folder

FILES = Path(__file__).parents[1] / "files" / "0.1.0"
CONFIG = GPartConfig(d=11, target_modules=["0"], modules_to_save=["2"], seed=9, bias="all", dropout=0.25)


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    with torch.no_grad():
        for number, value in enumerate(net.parameters()):
            value.copy_((torch.arange(value.numel()) * 37 % 101 - 50).view(value.shape) / 64 + number / 8)
    return net.eval()  # without dropout


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network().train()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.25)


class Validated(Lit):
    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.net(batch[0])


@pytest.fixture(scope="module")
def written() -> dict[str, torch.Tensor]:
    """W0 + P·theta as that version computed it, and theta."""
    return torch.load(FILES / "merged.pt", weights_only=True)


@pytest.mark.parametrize("source", ["adapter", "run.ckpt"])
def test_the_adapter_comes_to_the_same_bits(source: str, written: dict[str, torch.Tensor]) -> None:
    net = network()
    adapter = load_adapter(net, FILES / source)
    assert adapter.config == CONFIG
    assert adapter.theta.equal(written["theta"])
    assert net[0].weight.equal(written["weight"])
    assert net[0].bias.equal(written["bias"])
    adapter.merge()
    assert net[0]._parameters["weight"].equal(written["weight"])


def test_the_folder_written_again_has_the_same_tensors(tmp_path: Path) -> None:
    net = network()
    load_adapter(net, FILES / "adapter").save(tmp_path)
    name = "adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (FILES / "adapter" / name).read_bytes()
    old, new = read_folder(FILES / "adapter")[0], read_folder(tmp_path)[0]
    assert (old.format, new.format) == (1, 2)
    assert (old.config, old.size, old.weights) == (new.config, new.size, new.weights)
    assert old.base != new.base  # fingerprints of two formats


def test_another_base_is_told_by_the_old_fingerprint() -> None:
    net = network()
    with torch.no_grad():
        net[0].weight[0, 0] += 1
    with pytest.raises(GPartError, match="was trained on another base model"):
        load_adapter(net, FILES / "adapter")
    with pytest.warns(UserWarning, match="check_base=False"):
        load_adapter(net, FILES / "adapter", check_base=False)


def test_a_state_of_an_adapted_module_loads_with_its_old_names(written: dict[str, torch.Tensor]) -> None:
    state = torch.load(FILES / "state.pt", weights_only=True)
    assert "0.parametrizations.weight.original" in state
    net = network()
    attach(net, CONFIG)
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
    net.load_state_dict(state, strict=True)
    assert net[0].weight.equal(written["weight"])


def test_a_checkpoint_builds_the_module_and_goes_on(tmp_path: Path, written: dict[str, torch.Tensor]) -> None:
    module = load_from_checkpoint(Lit, FILES / "run.ckpt").eval()
    assert module.net[0].weight.equal(written["weight"])
    rows = (torch.arange(64.0).view(8, 8) * 5 % 17 - 8) / 4
    settings = {"d": 11, "target_modules": ["0"], "modules_to_save": ["2"], "seed": 9, "bias": "all", "dropout": 0.25}

    def trainer(**more: object) -> Trainer:
        return Trainer(
            max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, callbacks=[GPartCallback(**settings, **more)],
        )  # fmt: skip

    data = DataLoader(TensorDataset(rows), batch_size=4)
    trainer().validate(tested := Validated(), data, ckpt_path=FILES / "run.ckpt", verbose=False)
    assert tested.eval().net[0].weight.equal(module.net[0].weight)
    # In a container theta's place among the parameters is another one than it was, and with it the optimizer's order.
    with pytest.raises(GPartError, match=r"run\.ckpt is from before theta's place.*GPartCallback\(adapter="):
        trainer().fit(Lit(), data, ckpt_path=FILES / "run.ckpt")
    trainer(adapter=str(FILES / "run.ckpt")).fit(started := Lit(), data)
    assert not started.eval().net[0].weight.equal(module.net[0].weight)


SEVERAL = FILES.parent / "several"


def test_two_adapters_come_out_of_one_checkpoint_to_the_same_bits() -> None:
    """``tests/files/make_several.py`` wrote it, two adapters that were trained together."""
    written = torch.load(SEVERAL / "summed.pt", weights_only=True)
    net = load_from_checkpoint(Lit, SEVERAL / "run.ckpt").net.eval()
    assert active_adapters(net) == {"first": 1.0, "second-1": 1.0}
    assert torch.equal(net[0].weight, written["weight"])
    assert torch.equal(net[0].bias, written["bias"])
    for name in ("first", "second-1"):
        for source in (SEVERAL / "run.ckpt", SEVERAL / name):
            assert torch.equal(load_adapter(network(), source, name=name).theta, written[name])
    both = network()
    for name in ("first", "second-1"):
        load_adapter(both, SEVERAL / name)
    set_active(both, ["first", "second-1"])
    assert torch.equal(both[0].weight, written["weight"])
