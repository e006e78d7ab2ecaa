"""Fabric, of either package: attached before or after ``setup``; its own save and load; in two processes.

Run as a script this file is one of two processes: ``test_fabric.py FOLDER PACKAGE``.
"""

from __future__ import annotations

import copy
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpart import GPartConfig, attach, get_adapters, load_adapter
from gpart.errors import GPartError

PACKAGES = ["lightning.fabric", "lightning_fabric"]
CONFIG = GPartConfig(d=20, target_modules=["a", "b"], modules_to_save=["head"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(torch.tanh(self.a(x)))))

    def loss(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(x), (x[:, 0] > 0).long())


@pytest.fixture(params=PACKAGES)
def fabric(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param).Fabric(accelerator="cpu", devices=1)


def batches(count: int = 4) -> list[Tensor]:
    return list(torch.randn(count, 12, 8, generator=torch.Generator().manual_seed(1)))


def train(fabric: Any, model: Any, optimizer: Any, data: list[Tensor]) -> None:
    for x in data:
        loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: Any) -> Any:
    return torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], 0.05)


def set_up(fabric: Any, when: str) -> tuple[Any, Any, Any]:
    net = Net()
    if when == "before":
        adapter = attach(net, CONFIG)
        return adapter, *fabric.setup(net, adamw(net))
    model = fabric.setup_module(net)
    adapter = attach(model, CONFIG)
    return adapter, model, fabric.setup_optimizers(adamw(model))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_before_or_after_setup_is_as_without_fabric(fabric: Any) -> None:
    net = Net()
    attach(net, CONFIG)
    optimizer = adamw(net)
    for x in batches():
        net.loss(x).backward()
        optimizer.step()
        optimizer.zero_grad()
    for when in ("before", "after"):
        adapter, model, its = set_up(fabric, when)
        train(fabric, model, its, batches())
        assert same(model.state_dict(), net.state_dict()), when
        assert get_adapters(model) == {"default": adapter}
        assert adapter.theta.count_nonzero() == 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_saved_and_loaded_it_goes_on_to_the_bit(fabric: Any, when: str, tmp_path: Path) -> None:
    adapter, model, optimizer = set_up(fabric, when)
    train(fabric, model, optimizer, batches()[:2])
    state = {"model": model, "optimizer": optimizer, "step": 2}
    frozen = adapter.base_parameters()
    fabric.save(tmp_path / "whole.ckpt", state)
    fabric.save(tmp_path / "small.ckpt", state, filter={"model": lambda name, value: name not in frozen})
    train(fabric, model, optimizer, batches()[2:])
    for file, strict in (("whole.ckpt", True), ("small.ckpt", False)):
        _, other, its = set_up(fabric, when)
        left = fabric.load(tmp_path / file, {"model": other, "optimizer": its}, strict=strict)
        assert left["step"] == 2
        train(fabric, other, its, batches()[2:])
        assert same(other.state_dict(), model.state_dict())
    assert not set(frozen) & set(torch.load(tmp_path / "small.ckpt")["model"])


def test_its_files_have_plain_names(fabric: Any, tmp_path: Path) -> None:
    """A reader that knows neither Fabric nor an adapter finds the base; the adapter's folder loads into a plain network."""
    adapter, model, optimizer = set_up(fabric, "after")
    train(fabric, model, optimizer, batches())
    fabric.save(tmp_path / "whole.ckpt", {"model": model})
    found = torch.load(tmp_path / "whole.ckpt")["model"]
    assert set(found) - set(Net().state_dict()) == {"gpart.default.theta"}
    adapter.save(tmp_path / "folder")
    plain = Net()
    load_adapter(plain, tmp_path / "folder")
    assert same(plain.state_dict(), model.state_dict())
    adapter.merge_and_unload()
    assert list(model.state_dict()) == list(Net().state_dict())
    fabric.save(tmp_path / "merged.ckpt", {"model": model})
    merged = Net()
    fabric.load(tmp_path / "merged.ckpt", {"model": merged})
    assert torch.equal(merged.eval()(batches()[0]), plain.eval()(batches()[0]))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_theta_stays_wide(fabric: Any, precision: str) -> None:
    half = type(fabric)(accelerator="cpu", devices=1, precision=precision)
    for when in ("before", "after"):
        adapter, model, optimizer = set_up(half, when)
        train(half, model, optimizer, batches())
        assert adapter.theta.dtype == torch.float32
        assert model.a.weight.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


def test_another_method_of_the_network(fabric: Any) -> None:
    """As a LightningModule's training_step is run."""
    adapter, model, optimizer = set_up(fabric, "before")
    model.mark_forward_method("loss")
    fabric.backward(model.loss(batches()[0]))
    optimizer.step()
    assert adapter.theta.count_nonzero() == 20


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "fabric.md").read_text()
    found: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], found)
    assert torch.equal(found["again"].theta, found["adapter"].theta)
    assert found["again"].theta.count_nonzero() == 50
    assert set(torch.load("small.ckpt")["model"]) == {"2.weight", "2.bias", found["adapter"].theta_name}
    assert set(torch.load("whole.ckpt")["model"]) == {*found["base"], found["adapter"].theta_name}


@pytest.mark.slow  # two processes; test_ddp's are in the default suite
@pytest.mark.parametrize("package", PACKAGES)
def test_two_processes_train_one_theta(package: str, torchrun: Any, tmp_path: Path) -> None:
    pytest.importorskip(package)
    torchrun(__file__, 2, str(tmp_path), package)
    thetas = [torch.load(tmp_path / f"theta-{rank}.pt") for rank in range(2)]
    assert torch.equal(*thetas)
    plain = Net()
    load_adapter(plain, tmp_path / "adapter")
    assert torch.equal(plain.gpart.default.theta, thetas[0])

    # Each of the ranks has half of a batch.
    net = Net()
    attach(net, CONFIG)
    optimizer = adamw(net.eval())
    for x in batches():
        net.loss(x).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(net.gpart.default.theta, thetas[0], atol=1e-5)


def main(folder: Path, package: str) -> None:
    fabric = importlib.import_module(package).Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    adapter, model, optimizer = set_up(fabric, "before")
    half = slice(6 * fabric.global_rank, 6 * fabric.global_rank + 6)
    train(fabric, model.eval(), optimizer, [x[half] for x in batches()])
    with pytest.raises(GPartError, match="DistributedDataParallel is around the model already"):
        attach(fabric.setup_module(Net()), copy.deepcopy(CONFIG))
    torch.save(adapter.theta.detach(), folder / f"theta-{fabric.global_rank}.pt")
    fabric.save(folder / "whole.ckpt", {"model": model})
    if fabric.is_global_zero:
        adapter.save(folder / "adapter")
    fabric.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
