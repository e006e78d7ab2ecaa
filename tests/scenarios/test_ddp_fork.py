"""Forked processes (``ddp_fork``, ``ddp_notebook``): what they train is in the parent afterwards, or refused beforehand.

Run as a script this file is the parent: ``test_ddp_fork.py FOLDER``.
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

from gpart import GPartConfig, attach
from gpart.callbacks import AtomicCheckpointIO, GPartCallback, LinearProbe, load_from_checkpoint

pytestmark = pytest.mark.slow  # not above a minute, but the default suite has ten

SETTINGS = {"d": 10, "target_modules": ["0"], "modules_to_save": ["2"]}


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Late(Module):
    """Builds what it has in a hook that the callback wraps."""

    def configure_model(self) -> None:
        if self.net is None:
            self.net = Module().net

    def __init__(self) -> None:
        super().__init__()
        self.net = None


class Rows(Callback):
    """Writes what each process has in the end."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {name: value.tolist() for name, value in pl_module.named_parameters() if value.requires_grad}
        (self.out / f"child-{trainer.global_rank}.json").write_text(json.dumps(found))


class Sizes(AtomicCheckpointIO):
    """Notes how many numbers are written, by file."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        state = checkpoint.get("state_dict", checkpoint)
        (self.out / f"{Path(path).name}.size").write_text(str(sum(value.numel() for value in state.values())))
        super().save_checkpoint(checkpoint, path, storage_options)


def loader(ranks: int) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(32, 8, generator=generator), torch.arange(32) % 2)
    return DataLoader(data, 8 // ranks)


def fit(out: Path, strategy: str, method: Any, module: Module) -> Trainer:
    ranks = 1 if strategy == "auto" else 2
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    keeper = ModelCheckpoint(out / type(method).__name__, "{step}", enable_version_counter=False)
    trainer = Trainer(accelerator="cpu", devices=ranks, strategy=strategy, max_epochs=2, plugins=[Sizes(out)], **quiet,
                      callbacks=[method, Rows(out), keeper])  # fmt: skip
    trainer.fit(module, loader(ranks))
    return trainer


def trained(module: Module) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in module.named_parameters() if value.requires_grad}


def children(out: Path) -> list[Any]:
    return [json.loads((out / f"child-{rank}.json").read_text()) for rank in range(2)]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    module = Module()
    adapter = attach(module.net, GPartConfig(**SETTINGS))
    frozen = module.net[0]._parameters["weight"].clone()
    trainer = fit(out, "ddp_fork", GPartCallback(**SETTINGS), module)
    found: dict[str, Any] = {
        "parent": trained(module),
        "children": children(out),
        "theta": adapter.theta.tolist(),
        "frozen kept": torch.equal(frozen, module.net[0]._parameters["weight"]),
        "checkpoint": trainer.checkpoint_callback.best_model_path,
        "validated": trainer.validate(module, loader(2), verbose=False),
        "sizes": {path.stem: int(path.read_text()) for path in out.glob("*.size")},
    }
    for name, strategy, method, made in (
        ("attached too late", "ddp_notebook", GPartCallback(**SETTINGS), Module()),
        ("built late, attached too late", "ddp_fork", GPartCallback(**SETTINGS), Late()),
        ("spawned", "ddp_spawn", GPartCallback(**SETTINGS), Module()),
        ("probe", "ddp_fork", LinearProbe(modules_to_save=["2"]), Module()),
    ):
        try:
            fit(out, strategy, method, made)
        except Exception as error:  # noqa: BLE001  # the processes' error comes as torch's, with theirs in its text
            found[name] = str(error)
        else:
            found[name] = [trained(made), *children(out)]
    (out / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("fork")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PL_"))}
    with subprocess.Popen([sys.executable, __file__, str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**environment, "OMP_NUM_THREADS": "1"}, start_new_session=True) as process:  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise AssertionError(printed[-3000:])
    return json.loads((out / "found.json").read_text())


def test_the_parent_has_what_its_children_trained(found: dict[str, Any]) -> None:
    assert found["children"][0] == found["children"][1] == found["parent"]
    assert found["theta"] == found["parent"]["net.0.gpart.default.theta"]
    assert all(found["theta"])
    assert found["frozen kept"]


def test_it_is_what_one_process_trains(found: dict[str, Any], tmp_path: Path) -> None:
    module = Module()
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False)
    # Lightning deals the rows to the ranks in turn, in the order of each epoch's own seed: so does this loader.
    data = loader(1).dataset
    ranks = [DistributedSampler(data, 2, rank, shuffle=True) for rank in range(2)]

    class Joined:
        """The batches of both ranks, in one."""

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Any:
            for sampler in ranks:
                sampler.set_epoch(trainer.current_epoch)
            order = [row for pair in zip(*map(list, ranks), strict=True) for row in pair]
            return iter([list(data[order[at : at + 8]]) for at in range(0, 32, 8)])

    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[GPartCallback(**SETTINGS)], **quiet)
    trainer.fit(module, Joined())
    one, two = torch.tensor(found["theta"]), module.net.gpart.default.theta
    assert torch.allclose(one, two, rtol=0, atol=1e-6)


def test_its_checkpoint_loads_and_holds_no_base(found: dict[str, Any]) -> None:
    loaded = load_from_checkpoint(Module, found["checkpoint"])
    assert loaded.net.gpart.default.theta.tolist() == found["theta"]
    assert set(found["sizes"]) == {"step=4.ckpt", "step=8.ckpt", ".temp.ckpt"}
    assert set(found["sizes"].values()) == {10 + 64 * 2 + 2}
    assert found["validated"][0]["loss"] > 0


def test_what_would_be_lost_is_refused(found: dict[str, Any]) -> None:
    for name in ("attached too late", "built late, attached too late"):
        assert "gpart.default.theta'] would be lost: they were added in the forked processes" in found[name]
    assert "strategy 'ddp_spawn' is not supported" in found["spawned"]


def test_a_method_that_adds_nothing_needs_nothing(found: dict[str, Any]) -> None:
    parent, *children = found["probe"]
    assert sorted(children[0]) == ["net.2.bias", "net.2.weight"]
    for child in children:
        assert child == {name: parent[name] for name in child}  # what is frozen in the children is not in the parent
        assert child["net.2.weight"] != Module().net[2].weight.tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
