"""Two processes, started by Lightning itself as a user starts them, train as one process does.

Run as a script this file is one of the processes: ``test_ddp.py FOLDER DEVICES``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gpart import load_adapter
from gpart.callbacks import AtomicCheckpointIO, GPartCallback, load_from_checkpoint, saving
from gpart.serialization.folder import read_folder

STEPS, MORE, BATCH, D, SMALL = 5, 3, 8, 128, 10
HEAD = 16 * 2 + 2


class Module(LightningModule):
    """Built late, with a random head of each process's own, until DDP has made them equal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("own", torch.zeros(3))
        self.net: nn.Module | None = None

    def configure_model(self) -> None:
        if self.net is None:
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
            torch.manual_seed(0 if self._trainer is None else self.trainer.global_rank)
            nn.init.normal_(self.net[2].weight)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Traffic(Callback):
    """Counts the numbers that DDP reduces after a backward pass, and those it broadcasts before a forward pass."""

    def __init__(self) -> None:
        self.reduced, self.broadcast, self.names = 0, [], []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.names = [name for name, _ in pl_module.named_buffers()]
        if trainer.world_size == 1:
            return
        broadcast = torch.distributed._broadcast_coalesced

        def counting(group, tensors, *given):
            self.broadcast += [tensor.numel() for tensor in tensors]
            return broadcast(group, tensors, *given)

        def hook(state, bucket):  # no annotations: DDP compares them, and they would be strings here
            self.reduced += bucket.buffer().numel()
            work = torch.distributed.all_reduce(bucket.buffer().div_(trainer.world_size), async_op=True).get_future()
            return work.then(lambda done: done.value()[0])

        torch.distributed._broadcast_coalesced = counting
        trainer.strategy.model.register_comm_hook(None, hook)


class CountedAdapter(GPartCallback):
    saves = 0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        write = saving.write_folder

        def counting(*given: Any) -> None:
            self.saves += 1
            write(*given)

        saving.write_folder = counting
        super().on_fit_end(trainer, pl_module)
        saving.write_folder = write


class Counted(AtomicCheckpointIO):
    written = 0

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.written += 1
        super().save_checkpoint(*args, **kwargs)


def main(out: Path, devices: int) -> None:
    """Fit, validate, test; then go on from the checkpoint with a new module."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(40, 8), torch.randint(0, 2, (40,)))

    def trainer(method: GPartCallback, *callbacks: Callback, **more: Any) -> Trainer:
        strategy = "ddp" if devices > 1 else "auto"
        quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
        return Trainer(accelerator="cpu", devices=devices, strategy=strategy, use_distributed_sampler=False,
                       callbacks=[method, *callbacks], **quiet, **more)  # fmt: skip

    def loader(rank: int) -> DataLoader:
        sampler = DistributedSampler(data, num_replicas=devices, rank=rank, shuffle=False)
        return DataLoader(data, BATCH // devices, sampler=sampler)

    def gpart(folder: str | None = None) -> CountedAdapter:
        return CountedAdapter(d=SMALL, target_modules=["0"], modules_to_save=["2"], module="net", save_folder=folder)

    first, traffic, plugin = gpart(str(out / f"adapter-{devices}")), Traffic(), Counted()
    keeper = ModelCheckpoint(out / f"checkpoint-{devices}", monitor="val/loss")
    module, run = Module(), None
    run = trainer(first, traffic, keeper, plugins=[plugin], max_steps=STEPS)
    rank = run.global_rank
    run.fit(module, loader(rank), loader(rank))
    found = {
        "theta": first.adapter.theta.tolist(),
        "head": module.net[2].weight.tolist(),
        "reduced": traffic.reduced,
        "broadcast": list(traffic.broadcast),
        "buffers": traffic.names,
        "written": plugin.written,
        "saves": first.saves,
    }
    validated = run.validate(module, loader(rank), verbose=False)
    tested = run.test(module, loader(rank), ckpt_path="best", verbose=False)
    found["same loss"] = validated == tested

    second, resumed = gpart(), Module()
    again = trainer(second, max_steps=STEPS + MORE, enable_checkpointing=False)
    again.fit(resumed, loader(rank), loader(rank), ckpt_path=keeper.best_model_path)
    found.update(steps=again.global_step, resumed=second.adapter.theta.tolist(), path=keeper.best_model_path)
    (out / f"{devices}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], str]:
    """What each process found, by devices and rank; and what two processes printed."""
    out = tmp_path_factory.mktemp("ddp")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, __file__, str(out), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                          start_new_session=True) as process:  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the other rank too
            raise
    assert process.returncode == 0, printed[-3000:]
    threads = torch.get_num_threads()
    main(out, 1)
    torch.set_num_threads(threads)
    return out, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}, printed


@pytest.mark.parametrize("what", ["theta", "head", "resumed"])
def test_both_ranks_hold_what_one_process_has(what: str, runs: tuple[Any, ...]) -> None:
    _, found, _ = runs
    assert sorted(found) == ["1-0", "2-0", "2-1"]
    assert found["2-0"][what] == found["2-1"][what]
    one, two = torch.tensor(found["1-0"][what]), torch.tensor(found["2-0"][what])
    assert (one - two).abs().max() < 1e-6
    assert one.count_nonzero() == one.numel()


def test_they_go_on_from_their_checkpoint(runs: tuple[Any, ...]) -> None:
    for found in runs[1].values():
        assert found["steps"] == STEPS + MORE
        assert found["resumed"] != found["theta"]
        assert found["same loss"]


def test_only_theta_and_the_head_are_reduced(runs: tuple[Any, ...]) -> None:
    for rank in ("2-0", "2-1"):
        assert runs[1][rank]["reduced"] == STEPS * (SMALL + HEAD)


def test_no_index_is_broadcast(runs: tuple[Any, ...]) -> None:
    for rank in ("2-0", "2-1"):
        assert runs[1][rank]["buffers"] == ["own"]
        assert set(runs[1][rank]["broadcast"]) == {3}  # the module's own buffer, so that counting works


def test_one_process_writes_prints_and_the_files_load_in_one(runs: tuple[Any, ...]) -> None:
    out, found, printed = runs
    assert [found[rank]["written"] for rank in ("2-0", "2-1")] == [1, 0]
    assert [found[rank]["saves"] for rank in ("2-0", "2-1")] == [1, 0]
    assert printed.count("CountedAdapter ") == 2  # a table for each of the two fits
    (path,) = (out / "checkpoint-2").iterdir()
    assert str(path) == found["2-0"]["path"] == found["2-1"]["path"]
    loaded = load_from_checkpoint(Module, path)
    assert loaded.net.gpart.default.theta.tolist() == found["2-0"]["theta"]
    assert loaded.net[2].weight.tolist() == found["2-0"]["head"]
    fresh = Module()
    fresh.configure_model()
    adapter = load_adapter(fresh.net, out / "adapter-2")
    assert adapter.size == D
    assert adapter.theta.tolist() == found["2-0"]["theta"]
    assert read_folder(out / "adapter-2")[0].about.score["monitor"] == "val/loss"
    assert sorted(file.name for file in (out / "adapter-2").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
