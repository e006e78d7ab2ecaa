"""FSDP2 and FSDP 1 under ``pytorch_lightning`` as under ``lightning.pytorch``, with two processes on the CPU.

Run as a script this file is one of the processes: ``test_fsdp_packages.py FOLDER KIND``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from gpart.callbacks import GPartCallback, LinearProbe, load_from_checkpoint
from gpart.injection.names import get_parameter

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


@cache
def project(package: str) -> type:
    class Project(importlib.import_module(package).LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def configure_model(self) -> None:
            if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
                for part in (self.net.a, self.net.b, self.net):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch), (batch[:, 0] > 0).long())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 0.05)

    return Project


def strategy(package: str, kind: str) -> Any:
    strategies = importlib.import_module(f"{package}.strategies")
    if kind == "fsdp2":
        return strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    # Lightning asks for a GPU where the strategy is FSDPStrategy itself.
    own = type("OnCPU", (strategies.FSDPStrategy,), {})
    return own(auto_wrap_policy={nn.Linear})


def trainer(package: str, kind: str, folder: Path, *callbacks: Any, **more: Any) -> Any:
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    return importlib.import_module(package).Trainer(
        accelerator="cpu", devices=2, strategy=strategy(package, kind), use_distributed_sampler=False,
        callbacks=list(callbacks), default_root_dir=folder, **quiet, **{"max_epochs": 2, **more})  # fmt: skip


def loader(rank: int) -> DataLoader:
    data = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(list(data[rank::2]), 4)


def run(folder: Path, package: str, kind: str, rank: int, path: Path | None = None) -> dict[str, Any]:
    callbacks = importlib.import_module(f"{package}.callbacks")
    method = GPartCallback(d=10, target_modules=["a", "b"], modules_to_save=["head"])
    keeper = callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, enable_version_counter=False)
    fitting, module = trainer(package, kind, folder, method, keeper), project(package)()
    fitting.fit(module, loader(rank), ckpt_path=path)
    weight = get_parameter(module.net, "a.weight")
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return {"theta": method.adapter.values.tolist(), "local": local.numel(), "steps": fitting.global_step}


def refused(folder: Path, package: str, kind: str, rank: int) -> list[str]:
    said = []
    average = importlib.import_module(f"{package}.callbacks").WeightAveraging()
    for callbacks in ([GPartCallback(d=10, target_modules=["a"]), average], [LinearProbe(["head"])]):
        try:
            trainer(package, kind, folder, *callbacks).fit(project(package)(), loader(rank))
        except ValueError as error:
            said.append(str(error))
    return said


def main(out: Path, kind: str) -> None:
    torch.set_num_threads(1)
    init = FullyShardedDataParallel.__init__

    def on_cpu(self: Any, *given: Any, **more: Any) -> None:
        init(self, *given, **{**more, "device_id": torch.device("cpu")})

    FullyShardedDataParallel.__init__ = on_cpu
    rank, found = int(os.environ["RANK"]), {}
    for package in PACKAGES:
        whole = run(out / package, package, kind, rank)
        again = run(out / f"{package}-again", package, kind, rank, out / package / "epoch=0.ckpt")
        found[package] = {"whole": whole, "again": again, "refused": refused(out / "refused", package, kind, rank)}
    (out / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("fsdp2", "fsdp1")])
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("pytorch_lightning")
    return request.param


@pytest.fixture(scope="module")
def out(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def two(kind: str, out: Path, torchrun: Any) -> list[dict[str, Any]]:
    torchrun(__file__, 2, str(out), kind)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_packages_train_one_theta(two: list[dict[str, Any]]) -> None:
    for rank in two:
        ours, other = (rank[package] for package in PACKAGES)
        assert ours["whole"] == ours["again"] == other["whole"] == other["again"]
        assert ours["whole"]["theta"] == two[0][PACKAGES[0]]["whole"]["theta"]
        assert 0 < ours["whole"]["local"] < 8 * 16
        assert ours["whole"]["steps"] == 4
        assert all(ours["whole"]["theta"])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_of_two_is_read_by_one(package: str, out: Path, two: list[dict[str, Any]]) -> None:
    path = out / package / "epoch=1.ckpt"
    assert path.is_file()  # no folder of shards
    module = load_from_checkpoint(project(package), path)
    assert module.net.gpart.default.theta.tolist() == two[0][package]["whole"]["theta"]


@pytest.mark.parametrize("package", PACKAGES)
def test_refusals_name_the_strategy_as_the_user_does(package: str, kind: str, two: list[dict[str, Any]]) -> None:
    name = {"fsdp1": "OnCPU", "fsdp2": "ModelParallelStrategy"}[kind]
    average, probe = two[0][package]["refused"]
    assert f"WeightAveraging is not supported under {name}" in average
    assert f"LinearProbe under {name} is not supported" in probe


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
