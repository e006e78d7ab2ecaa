"""Crash after any step, resume, finish: the same numbers, rows, masks and states as the uninterrupted run, bit for bit.

Run as a script this file is one of two processes: ``test_resume_random.py FOLDER``, started by torchrun.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint, Timer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpart.callbacks import GPartCallback, RandomStates
from gpart.datamodules.common.seeded import SeededDataModule

EPOCHS, ROWS, BATCH = 3, 16, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "0 workers": {},
    "2 workers": {"num_workers": 2},
    "validation within the epoch": {"val_check_interval": 0.5},
    "accumulation": {"accumulate_grad_batches": 2, "limit_val_batches": 0},
}


class Pairs:
    """Numbered rows, by the sampler's keys of epoch and position."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.rows = list(zip(torch.randn(ROWS, 8, generator=generator), range(ROWS), strict=True))

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return self.rows[key[1]]

    def __len__(self) -> int:
        return ROWS


class Rows(SeededDataModule):
    """Numbered rows, by the library's own loader."""

    def __init__(self, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rows = Pairs().rows

    def train_dataloader(self) -> Any:
        return self.loader(Pairs(), self.collate, BATCH, self.sampler(ROWS))

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows[:4], batch_size=2, collate_fn=self.collate)

    @staticmethod
    def collate(rows: list[tuple[Tensor, int]]) -> dict[str, Any]:
        return {"x": torch.stack([x for x, _ in rows]), "idx": [index for _, index in rows]}


class Noisy(LightningModule):
    """Draws from every generator in training, and in validation too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 2))
        self.seen: list[Any] = []

    def on_fit_start(self) -> None:
        for _ in range(self.global_rank):  # Lightning seeds all ranks alike; here each has numbers of its own to keep
            torch.rand(1), random.random(), np.random.rand()

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        loss = (self.net(batch["x"]) ** 2).mean() * (1 + drawn[0]) + drawn[1]
        self.seen.append([batch["idx"], drawn, float(loss.detach())])
        return loss

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        torch.rand(3), random.random(), np.random.rand()
        self.log("val/loss", self.net(batch["x"]).mean(), batch_size=2, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class AtValidation(ModelCheckpoint):
    """By another name, since Lightning tells two by their class and how often they save."""


def plain(value: Any) -> Any:
    """Tensors as their bits, so that equality is equality of bits."""
    if isinstance(value, Tensor):
        return [str(value.dtype), value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def fit(
    seed: int, *callbacks: Callback, path: Path | None = None, data: Any = None, **more: Any
) -> tuple[list[Any], Any]:
    """What the steps saw, and what the run ended as."""
    seed_everything(seed, verbose=False)
    module = Noisy()
    gpart = GPartCallback(d=10, target_modules=["0"], modules_to_save=["3"], dropout=0.25)
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=EPOCHS,
                      callbacks=[gpart, *callbacks], enable_checkpointing=bool(callbacks), **quiet, **more)  # fmt: skip
    trainer.fit(module, datamodule=data or Rows(), ckpt_path=path)
    states = trainer.optimizers[0].state_dict(), trainer.lr_scheduler_configs[0].scheduler.state_dict()
    return module.seen, plain([module.state_dict(), *states])


def resumed_from_everywhere(folder: Path, num_workers: int = 0, **more: Any) -> tuple[dict[str, str], list[Any]]:
    """For each checkpoint of a run, by its name, how the run that goes on from it differs, or "same"; and what it drew."""
    keepers = [
        ModelCheckpoint(folder, "step-{epoch}-{step}", save_top_k=-1, every_n_train_steps=1),
        ModelCheckpoint(folder, "epoch-{epoch}-{step}", save_top_k=-1, save_on_train_epoch_end=True),
        AtValidation(folder, "val-{epoch}-{step}", save_top_k=-1, save_on_train_epoch_end=False),
    ]
    whole, ended = fit(0, *keepers, data=Rows(num_workers), **more)
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.ckpt")):
        # Another seed: what is the same then, came from the checkpoint.
        seen, end = fit(99, path=path, data=Rows(num_workers), **more)
        rest = whole[len(whole) - len(seen) :]
        different = [name for name, a, b in (("steps", seen, rest), ("end", end, ended)) if a != b]
        found[path.stem] = f"{len(seen)} left, different: {different}" if different else "same"
    assert len(whole) == ROWS // BATCH // int(os.environ.get("WORLD_SIZE", "1")) * EPOCHS
    return found, [drawn for _, drawn, _ in whole]


def assert_all_same(found: dict[str, str], moments: set[str]) -> None:
    assert {name.split("-")[0] for name in found} == moments
    assert {name: how for name, how in found.items() if how != "same"} == {}


QUICK = ("0 workers", "accumulation")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SETTINGS]
)
def test_one_process(name: str, tmp_path: Path) -> None:
    found, _ = resumed_from_everywhere(tmp_path, **SETTINGS[name])
    assert_all_same(found, {"step", "epoch"} if "limit_val_batches" in SETTINGS[name] else {"step", "val", "epoch"})


class Shuffled(Rows):
    """As other people's: torch's own loader, whose order comes from the global generator."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, BATCH, shuffle=True, collate_fn=self.collate)


@pytest.mark.parametrize("at_validation", [True, False])
def test_a_plain_shuffled_loader_goes_on_from_an_epochs_end(at_validation: bool, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not at_validation)
    whole, ended = fit(0, keeper, data=Shuffled())
    seen, end = fit(99, path=tmp_path / "epoch=0.ckpt", data=Shuffled())
    assert (seen, end) == (whole[ROWS // BATCH :], ended)
    assert [rows for rows, *_ in whole[:8]] != [rows for rows, *_ in whole[8:16]]


class Still(LightningModule):
    """Draws nothing in a step; keeps what the loader and its worker gave, and what the generators would give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        self.seen: list[list[Any]] = []

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        if index == 0:
            states = torch.get_rng_state(), random.getstate(), np.random.get_state()
            self.seen.append([float(torch.rand(())), random.random(), float(np.random.rand())])
            torch.set_rng_state(states[0]), random.setstate(states[1]), np.random.set_state(states[2])
        self.seen[-1].append(batch["idx"])
        return (self.net(batch["x"]) ** 2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class Augmented(Shuffled):
    """Each row as its number and what its worker drew."""

    def train_dataloader(self) -> Any:
        workers = self.hparams["num_workers"]
        return DataLoader(self.rows, BATCH, shuffle=True, collate_fn=self.noisy, num_workers=workers)

    @staticmethod
    def noisy(rows: list[tuple[Tensor, int]]) -> dict[str, Any]:
        drawn = [] if torch.utils.data.get_worker_info() is None else [float(torch.rand(()))]
        return {"x": torch.stack([x for x, _ in rows]), "idx": [*(index for _, index in rows), *drawn]}


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_has_an_order_of_its_own_where_no_step_draws(workers: int, tmp_path: Path) -> None:
    """The state after the last step stood still, so that each epoch had the order and the workers' seeds of the second."""

    def epochs(seed: int, number: int, path: Path | None = None) -> list[list[Any]]:
        seed_everything(seed, verbose=False)
        module = Still()
        gpart = GPartCallback(d=10, target_modules=["0"], modules_to_save=["2"])
        keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
        trainer = Trainer(accelerator="cpu", max_epochs=number, callbacks=[gpart, keeper], limit_val_batches=0, **quiet)
        trainer.fit(module, datamodule=Augmented(workers), ckpt_path=path)
        return module.seen

    whole = epochs(0, 5)
    for what in zip(*whole, strict=True):  # the three generators, and each of the batches
        assert len({json.dumps(one) for one in what}) == 5
    assert epochs(99, 5, tmp_path / "epoch=1.ckpt") == whole[2:]


def test_another_fit_of_the_same_trainer_does_not_go_back(lit_class: Any, lit_gpart: Any, lit_trainer: Any,
                                                          lit_loader: Any) -> None:  # fmt: skip
    module, drawn = lit_class(), []
    trainer = lit_trainer(lit_gpart(), max_epochs=1)
    trainer.callbacks.insert(0, LambdaCallback(on_train_batch_end=lambda *_: drawn.append(float(torch.rand(())))))
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, lit_loader())
    assert len(set(drawn)) == len(drawn) == 8


@pytest.mark.parametrize("resuming", [False, True])
def test_a_loop_of_before_lightning_2_6_is_asked_by_its_own_name(resuming: bool, monkeypatch: Any) -> None:
    rewound = []
    monkeypatch.setattr(RandomStates, "_rewind", lambda self, trainer: rewound.append(trainer))
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(restarting=resuming))
    RandomStates().on_train_epoch_start(trainer, LightningModule())
    assert rewound == ([] if resuming else [trainer])


def test_states_of_other_ranks_are_left_out_with_a_warning(lit_class: Any, lit_gpart: Any, lit_trainer: Any,
                                                           lit_loader: Any, tmp_path: Path) -> None:  # fmt: skip
    trainer = lit_trainer(lit_gpart(), max_epochs=1)
    trainer.fit(lit_class(), lit_loader())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    states = checkpoint["callbacks"]["RandomStates"]["states"]
    assert list(states) == [0]
    states[1] = states[0]
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match=r"random states of ranks \[0, 1\], and this run has 1 ranks"):
        lit_trainer(lit_gpart(), max_epochs=2).fit(lit_class(), lit_loader(), ckpt_path=tmp_path / "two.ckpt")


def test_it_stands_once_behind_the_others_and_before_what_saves(lit_class: Any, lit_gpart: Any, lit_trainer: Any,
                                                                lit_loader: Any, tmp_path: Path) -> None:  # fmt: skip
    trainer = lit_trainer(lit_gpart(), Timer(), enable_checkpointing=True, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(lit_class(), lit_loader())
    trainer.validate(lit_class(), lit_loader(), verbose=False)
    names = [type(callback).__name__ for callback in trainer.callbacks]
    assert names.count("RandomStates") == 1
    assert names[-2:] == ["RandomStates", "ModelCheckpoint"]
    own = RandomStates()
    trainer = lit_trainer(own, lit_gpart(), max_epochs=1)
    trainer.fit(lit_class(), lit_loader())
    assert [callback for callback in trainer.callbacks if isinstance(callback, RandomStates)] == [own]


@pytest.fixture(scope="module")
def launch(torchrun: Any) -> Any:
    """Runs this file in two processes; what each of them found."""

    def run(out: Path, *words: str) -> list[Any]:
        torchrun(__file__, 2, str(out), *words, timeout=120)
        return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]

    return run


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, launch: Any) -> list[dict[str, Any]]:
    return launch(tmp_path_factory.mktemp("resume"))


TWO = [name for name in SETTINGS if name != "2 workers"]
"""A process of many runs has many threads, with which forking a worker can hang: those runs have processes of their own."""


@pytest.mark.slow  # two processes; test_ddp's are in the default suite
@pytest.mark.parametrize("name", TWO)
def test_two_processes(name: str, two_processes: list[dict[str, Any]]) -> None:
    for found in two_processes:
        without = "limit_val_batches" in SETTINGS[name]
        assert_all_same(found[name], {"step", "epoch"} if without else {"step", "val", "epoch"})
    first, second = (found[f"drawn, {name}"] for found in two_processes)
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_two_processes_of_two_workers(tmp_path: Path, launch: Any) -> None:
    whole = launch(tmp_path, "workers")
    for step in (2, 4):  # an epoch's middle, and its last step
        resumed = launch(tmp_path, "workers", str(tmp_path / f"step={step}.ckpt"))
        for (seen, end), (all_seen, ended) in zip(resumed, whole, strict=True):
            assert len(seen) == 12 - step
            assert (seen, end) == (all_seen[step:], ended)


def main(out: Path, *words: str) -> None:
    torch.set_num_threads(1)
    found: Any = {}
    if words:
        keepers = [] if words[1:] else [ModelCheckpoint(out, "{step}", save_top_k=-1, every_n_train_steps=1)]
        found = fit(len(words), *keepers, path=words[1] if words[1:] else None, data=Rows(num_workers=2))
    else:
        for name in TWO:
            found[name], found[f"drawn, {name}"] = resumed_from_everywhere(out / name, **SETTINGS[name])
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
