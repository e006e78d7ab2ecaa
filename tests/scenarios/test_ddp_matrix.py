"""DDP under every setting that people use: each rank has the same theta at every step, and it is one process's.

Run as a script this file is one of several processes that torchrun has started: ``test_ddp_matrix.py FOLDER``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from joined_batch import BATCH, LENGTH, Classifier, bits, loader
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpart import load_adapter
from gpart.callbacks import GPartCallback, load_from_checkpoint

D, SMALL, HEAD = 128 + 256, 10, 16 * 2 + 2
MATRIX: dict[str, dict[str, Any]] = {
    "plain": {},
    "unused parameters looked for": {"strategy": {"find_unused_parameters": True}},
    "gradients as views": {"strategy": {"gradient_as_bucket_view": True}},
    "static graph": {"strategy": {"static_graph": True}},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.05},
    "checkpointing": {"segments": "plain"},
    "checkpointing, static graph": {"segments": "plain", "strategy": {"static_graph": True}},
    "re-entrant checkpointing, static graph": {"segments": "re-entrant", "strategy": {"static_graph": True}},
    "recomputed and computed": {"method": {"weights": "recomputed", "indices": "computed"}},
    "kept, accumulation": {"method": {"weights": "kept"}, "accumulate_grad_batches": 2},
    "dropout": {"method": {"dropout": 0.3}},
}
"""``find_unused_parameters=False`` is the default, and so in every other row. Static graph with accumulation is left out:
torch's reducer fails on a no_sync in the first step, of a plain Linear too (torch 2.14, "expect_autograd_hooks_")."""


class Module(Classifier):
    """Two adapted layers, each in a checkpointed segment where asked for, a head, and a buffer of its own."""

    def __init__(self, segments: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.segments = segments
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        self.register_buffer("own", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if not self.segments or not self.training:
            return self.net(x)
        again = self.segments == "re-entrant"
        x = x.requires_grad_(again)  # without it re-entrant checkpointing gives no gradients
        for first in (0, 2):
            x = checkpoint(self.net[first : first + 2], x, use_reentrant=again)
        return self.net[4](x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class Watch(Callback):
    """Theta's bits after every step; what DDP reduces, and what it broadcasts from the start of training on."""

    def __init__(self) -> None:
        self.thetas: list[str] = []
        self.broadcast: list[int] = []
        self.reduced = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        self.real = torch.distributed._broadcast_coalesced

        def counting(group, tensors, *given):
            self.broadcast += [tensor.numel() for tensor in tensors]
            return self.real(group, tensors, *given)

        def hook(state, bucket):  # no annotations: DDP compares them, and they would be strings here
            self.reduced += bucket.buffer().numel()
            work = torch.distributed.all_reduce(bucket.buffer().div_(trainer.world_size), async_op=True).get_future()
            return work.then(lambda done: done.value()[0])

        torch.distributed._broadcast_coalesced = counting
        trainer.strategy.model.register_comm_hook(None, hook)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *given: Any) -> None:
        self.thetas.append(bits(pl_module.net.gpart.default.theta))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            torch.distributed._broadcast_coalesced = self.real


def run(out: Path, name: str, ranks: int, rank: int, segments: str = "", strategy: dict[str, Any] | None = None,
        method: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:  # fmt: skip
    """Fit, validate, test, predict; and the files."""
    module, watch = Module(segments), Watch()
    gpart = GPartCallback(d=SMALL, target_modules=["0", "2"], modules_to_save=["4"], **(method or {}))
    keeper = ModelCheckpoint(out / name, "{step}", enable_version_counter=False)
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    trainer = Trainer(accelerator="cpu", devices=ranks, strategy=DDPStrategy(**(strategy or {})) if ranks > 1 else "auto",
                      use_distributed_sampler=False, max_epochs=2, callbacks=[gpart, watch, keeper], **quiet, **more)  # fmt: skip
    trainer.fit(module, loader(ranks, rank), loader(ranks, rank))
    validated, tested = (
        call(module, loader(ranks, rank), verbose=False)[0]["loss"] for call in (trainer.validate, trainer.test)
    )
    predicted = torch.cat(trainer.predict(module, loader(ranks, rank)))
    return {
        "theta": gpart.adapter.theta.tolist(),
        "thetas": watch.thetas,
        "head": module.net[4].weight.tolist(),
        "losses": [validated, tested],
        "predicted": predicted.tolist(),
        "reduced": watch.reduced,
        "broadcast": sorted(set(watch.broadcast)),
        "steps": trainer.global_step,
        "checkpoint": keeper.best_model_path,
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found = {name: run(out / str(ranks), name, ranks, rank, **row) for name, row in MATRIX.items()}
    (out / f"{ranks}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def alone(out: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    main(out)
    torch.set_num_threads(threads)
    return json.loads((out / "1-0.json").read_text())


@pytest.fixture(scope="module", params=[pytest.param(count, marks=pytest.mark.slow) for count in (2, 4)])
def processes(request: pytest.FixtureRequest, out: Path, torchrun: Any) -> list[dict[str, Any]]:
    """What each process found, by row."""
    torchrun(__file__, request.param, str(out))
    return [json.loads((out / f"{request.param}-{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("name", MATRIX)
def test_ranks_agree_at_every_step_and_with_one_process(
    name: str, processes: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    single, ranks = alone[name], [found[name] for found in processes]
    micro = 2 * LENGTH // BATCH
    steps = micro // MATRIX[name].get("accumulate_grad_batches", 1)
    for rank in ranks:
        assert rank["thetas"] == ranks[0]["thetas"]
        assert len(set(rank["thetas"])) == steps + (steps < micro)  # theta = 0 before the first step of two
        assert rank["steps"] == single["steps"] == steps
        assert rank["head"] == ranks[0]["head"]
        assert rank["losses"] == ranks[0]["losses"]
        # Nothing is broadcast after construction but the module's own buffer of three numbers, and no gradient reduced
        # but theta's and the head's, once a step.
        assert rank["broadcast"] == [3]
        assert rank["reduced"] == steps * (SMALL + HEAD)
    if name == "dropout":  # the masks come from each process's own generator
        return
    for key in ("theta", "head", "losses"):
        assert torch.allclose(torch.tensor(ranks[0][key]), torch.tensor(single[key]), rtol=0, atol=1e-6), key
    # Rank r has rows r, r + ranks, ...
    dealt = torch.stack([torch.tensor(rank["predicted"]) for rank in ranks], 1).reshape(LENGTH, 2)
    assert torch.allclose(dealt, torch.tensor(single["predicted"]), rtol=0, atol=1e-5)


def test_no_setting_changes_what_is_trained(alone: dict[str, Any]) -> None:
    """The rows that differ in how, not in what, end as the plain one."""
    for name in ("checkpointing", "re-entrant checkpointing, static graph", "recomputed and computed"):
        assert torch.allclose(
            torch.tensor(alone[name]["theta"]), torch.tensor(alone["plain"]["theta"]), rtol=0, atol=1e-6
        )
    assert alone["kept, accumulation"]["theta"] == alone["accumulation"]["theta"]
    for name in ("accumulation", "clipping", "dropout"):
        assert alone[name]["theta"] != alone["plain"]["theta"]


def test_their_checkpoints_load_in_one_process(processes: list[dict[str, Any]]) -> None:
    for name, found in processes[0].items():
        assert all(rank[name]["checkpoint"] == found["checkpoint"] for rank in processes)
        module = load_from_checkpoint(Module, found["checkpoint"])
        assert module.net.gpart.default.theta.tolist() == found["theta"]
        assert module.net[4].weight.tolist() == found["head"]
        assert load_adapter(Module().net, found["checkpoint"]).size == D


if __name__ == "__main__":
    main(Path(sys.argv[1]))
