"""Lightning's other callbacks beside GPart: what each is for happens, or it is refused with what to do instead.

After every fit: theta is trained, the frozen weights have the bits they had, and the checkpoint holds theta and the head.
Averages are in test_callback.py and test_checkpoint.py, LearningRateFinder and AsyncCheckpointIO in
test_lightning_checkpoints.py, OnExceptionCheckpoint also in test_finite.py.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import load_adapter
from gpart.callbacks import load_from_checkpoint

TRAINED = {"net.3.weight", "net.3.bias", "net.0.gpart.default.theta"}


@pytest.fixture
def fit(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, lit_frozen_kept: Any, tmp_path: Path) -> Any:
    """Fits with further callbacks and checks what has to hold after any fit; returns the module and the trainer."""

    def run(*callbacks: Any, module: Any = None, data: Any = None, first: bool = True, **more: Any) -> Any:
        module = module or lit_class()
        before = {name: value.clone() for name, value in module.net.named_parameters()}
        ordered = [lit_gpart(), *callbacks] if first else [*callbacks, lit_gpart()]
        trainer = lit_trainer(*ordered, **{"max_epochs": 2, **more})
        trainer.fit(module, *([data] if data is not None else [lit_loader(), lit_loader()]))
        lit_frozen_kept(module.net, before)
        assert module.net.gpart.default.theta.count_nonzero() == 10
        trainer.save_checkpoint(tmp_path / "checked.ckpt")
        state = torch.load(tmp_path / "checked.ckpt", weights_only=True)["state_dict"]
        assert {key for key in state if "running" not in key and "num_batches" not in key and " " not in key} == TRAINED
        return module, trainer

    return run


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    """What was logged."""
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_early_stopping_stops(fit: Any) -> None:
    stop = EarlyStopping("val/loss", patience=1, min_delta=10.0)
    _, trainer = fit(stop, max_epochs=9)
    assert stop.stopped_epoch == trainer.current_epoch - 1 == 1


def test_early_stopping_comes_back_from_a_checkpoint(fit: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any,
                                                      lit_loader: Any, tmp_path: Path) -> None:  # fmt: skip
    fit(EarlyStopping("val/loss", patience=3, min_delta=10.0), max_epochs=3)
    again = EarlyStopping("val/loss", patience=3, min_delta=10.0)
    trainer = lit_trainer(lit_gpart(), again, max_epochs=9)
    trainer.fit(lit_class(), lit_loader(), lit_loader(), ckpt_path=tmp_path / "checked.ckpt")
    assert again.stopped_epoch == 3


@pytest.mark.parametrize("first", [True, False])
def test_gradient_accumulation_scheduler_changes_the_steps(first: bool, fit: Any) -> None:
    _, trainer = fit(GradientAccumulationScheduler({0: 4, 1: 2}), max_epochs=3, first=first)
    assert trainer.global_step == 1 + 2 + 2


@pytest.mark.parametrize("first", [True, False])
def test_learning_rate_finder_starts_from_theta_zero(first: bool, fit: Any, lit_class: Any) -> None:
    starts: list[Tensor] = []
    heads: list[Tensor] = []

    class Looks(lit_class):
        def on_train_start(self) -> None:
            starts.append(self.net.gpart.default.theta.detach().clone())
            heads.append(self.net[3].weight.detach().clone())

    finder = LearningRateFinder(min_lr=1e-4, max_lr=1e-1, num_training_steps=8)
    module, _ = fit(finder, module=Looks(), first=first)
    assert 1e-4 <= module.lr <= 1e-1
    assert finder.optimal_lr is not None
    assert len(starts) == 2
    assert not starts[-1].any()
    assert torch.equal(heads[0], heads[1])


@pytest.fixture
def sized(lit_class: Any) -> Any:
    """The project with a batch size of its own, which the finder changes."""

    class Sized(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2
            self.starts: list[Tensor] = []

        def train_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(torch.randn(64, 8), torch.arange(64) % 2), batch_size=self.batch_size)

        val_dataloader = train_dataloader

        def on_train_start(self) -> None:
            self.starts.append(self.net.gpart.default.theta.detach().clone())

    return Sized


@pytest.mark.parametrize("how", ["callback", "callback, before ours", "tuner"])
def test_batch_size_finder_starts_from_theta_zero(how: str, sized: Any, lit_gpart: Any, lit_trainer: Any) -> None:
    module, method = sized(), lit_gpart()
    finder = BatchSizeFinder(max_trials=3, steps_per_trial=2)
    order = {"callback": [method, finder], "callback, before ours": [finder, method], "tuner": [method]}[how]
    trainer = lit_trainer(*order, max_epochs=1)
    if how == "tuner":
        Tuner(trainer).scale_batch_size(module, max_trials=3, steps_per_trial=2)
        assert not module.net.gpart.default.theta.any()
    trainer.fit(module)
    assert module.batch_size == 8
    assert not module.starts[-1].any()
    assert trainer.global_step == 64 // 8
    assert method.adapter.theta.count_nonzero() == 10


def test_on_exception_checkpoint_holds_what_there_was_and_goes_on(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    """As without GPart it goes on where the loader can: this one begins again, a resumable one leaves the batch out."""

    class Crash(Callback):
        def on_before_backward(self, trainer: Trainer, module: Any, loss: Tensor) -> None:
            if trainer.global_step == 5 and not trainer.ckpt_path:
                self.theta = module.net.gpart.default.theta.detach().clone()
                raise RuntimeError("power cut")

    class Kept(OnExceptionCheckpoint):
        def teardown(self, *given: Any, **more: Any) -> None:
            """Lightning's removes the file at the end of a run that has ended well."""

    crash = Crash()
    trainer = lit_trainer(lit_gpart(), crash, Kept(tmp_path), max_epochs=2, enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit(lit_class(), lit_loader())
    (path,) = tmp_path.glob("*.ckpt")
    assert torch.equal(load_adapter(lit_class().net, path).theta, crash.theta)
    resumed = lit_class()
    again = lit_trainer(lit_gpart(), crash, max_epochs=2)
    again.fit(resumed, lit_loader(), ckpt_path=path)
    assert again.global_step == 8
    assert not torch.equal(resumed.net.gpart.default.theta, crash.theta)


def test_throughput_monitor_counts_batches_samples_and_operations(fit: Any, tmp_path: Path) -> None:
    from lightning.fabric.utilities.throughput import measure_flops

    monitor = ThroughputMonitor(
        batch_size_fn=lambda batch: len(batch[0]), length_fn=lambda batch: batch[0].shape[1], window_size=2
    )
    logger = CSVLogger(tmp_path)
    module, _ = fit(monitor, logger=logger, log_every_n_steps=2)
    logged = [row for row in rows(logger) if row["train/samples"]]
    assert [float(row["train/samples"]) for row in logged] == [8, 16, 24, 32]
    assert float(logged[-1]["train/device/samples_per_sec"]) > 0
    assert float(logged[-1]["train/device/items_per_sec"]) > 0
    x = torch.randn(4, 8)
    adapted = measure_flops(module, lambda: module(x), lambda out: out.sum())
    assert adapted >= measure_flops(module, lambda: module(x)) > 0


@pytest.mark.parametrize("first", [True, False])
def test_backbone_finetuning_of_the_adapted_network_is_refused_before_it_trains_it(
    first: bool, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class WithBackbone(lit_class):
        @property
        def backbone(self) -> nn.Module:
            return self.net[0]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)

    module, method = WithBackbone(), lit_gpart()
    before = module.net[0].weight.detach().clone()
    tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1)
    trainer = lit_trainer(*([method, tuning] if first else [tuning, method]), max_epochs=3)
    # Where it is set up last it freezes theta too, which stands in the layer.
    message = (
        r"theta.*GPartCallback trains, are frozen now" if first else r"2 parameters that GPartCallback froze.*0\.weight"
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, lit_loader())
    assert trainer.current_epoch == (0 if first else 1)
    assert torch.equal(method.adapter.base_parameters()["0.weight"], before)


def test_finetuning_that_freezes_theta_is_refused(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Freezes(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.net, train_bn=False)

        def finetune_function(self, *given: Any) -> None:
            """Unfreezes nothing."""

    with pytest.raises(ValueError, match=r"theta.*(which GPartCallback trains, are frozen now|in no optimizer)"):
        lit_trainer(lit_gpart(), Freezes(), max_epochs=1).fit(lit_class(), lit_loader())


def test_the_head_may_rest_for_some_epochs(
    tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Rests(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.net[3])

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[3], optimizer, lr=0.1)

    class Filtered(lit_class):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)

    heads: list[Tensor] = []
    module, look = Filtered(), LambdaCallback(on_train_epoch_end=lambda _, lit: heads.append(lit.net[3].weight.clone()))
    start = module.net[3].weight.clone()
    keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    lit_trainer(lit_gpart(), Rests(), look, keeper, enable_checkpointing=True, max_epochs=3).fit(module, lit_loader())
    assert torch.equal(heads[0], start)
    assert not torch.equal(heads[1], start)
    for epoch, head in enumerate(heads):
        assert torch.equal(torch.load(tmp_path / f"epoch={epoch}.ckpt")["state_dict"]["net.3.weight"], head)


def test_finetuning_of_what_lies_outside_works(
    fit: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Two(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.backbone(x))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)

    module = Two()
    before = module.backbone.weight.detach().clone()
    tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1)
    lit_trainer(lit_gpart(module="net"), tuning, max_epochs=2).fit(module, lit_loader())
    assert not torch.equal(module.backbone.weight, before)
    assert module.net.gpart.default.theta.count_nonzero() == 10


def test_pruning_of_an_adapted_layer_is_refused(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    prune = ModelPruning("l1_unstructured", parameters_to_prune=[(module.net[0], "weight")], amount=0.5)
    with pytest.raises(
        ValueError, match=r"ModelPruning is not supported beside GPartCallback of 0\.weight: .*merge_and_unload"
    ):
        lit_trainer(lit_gpart(), prune, max_epochs=1).fit(module, lit_loader())


@pytest.mark.parametrize("first", [False, True])
def test_pruning_outside_the_adapted_network_works(
    first: bool, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Two(lit_class):  # type: ignore[misc]  # a fixture
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            return self.net(self.side(x))

    module, method = Two(), lit_gpart(module="net", save_folder=str(tmp_path / "adapter"))
    prune = ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(module.side, "weight")],
        amount=0.5,
        use_lottery_ticket_hypothesis=False,
    )
    keeper = ModelCheckpoint(tmp_path)
    callbacks = [prune, method] if first else [method, prune]
    lit_trainer(*callbacks, keeper, max_epochs=1, enable_checkpointing=True).fit(module, lit_loader())
    assert int((module.side.weight == 0).sum()) == 32
    assert method.adapter.theta.count_nonzero() == 10
    loaded = load_from_checkpoint(Two, keeper.best_model_path)
    assert torch.equal(loaded.side.weight, module.side.weight)
    load_adapter(Two().net, tmp_path / "adapter")


def test_those_that_only_look(fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    timer, logger = Timer(duration="00:01:00:00"), CSVLogger(tmp_path)
    fit(timer, LearningRateMonitor("step"), ModelSummary(max_depth=2), LambdaCallback(on_train_epoch_end=lambda *_: seen.append(1)),
        DeviceStatsMonitor(cpu_stats=False), logger=logger, log_every_n_steps=1)  # fmt: skip
    assert len(seen) == 2
    assert timer.time_elapsed("train") > 0
    rates = [float(row["lr-AdamW"]) for row in rows(logger) if row["lr-AdamW"]]
    assert rates[0] == 0.01 > rates[-1]


def test_the_summary_counts_what_is_trained(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit(RichModelSummary(max_depth=1))
    printed = capsys.readouterr().out
    assert "Trainable params: 44 " in printed
    assert "Non-trainable params: 176 " in printed


def test_prediction_writer_gets_what_the_adapted_network_says(fit: Any, lit_loader: Any, tmp_path: Path) -> None:
    class Writer(BasePredictionWriter):
        def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, indices: Any) -> None:
            torch.save(torch.cat(predictions), tmp_path / "predictions.pt")

    module, trainer = fit(Writer("epoch"))
    trainer.predict(module, lit_loader())
    with torch.no_grad():
        expected = torch.cat([module.eval()(batch[0]) for batch in lit_loader()])
    assert torch.equal(torch.load(tmp_path / "predictions.pt", weights_only=True), expected)


@pytest.mark.parametrize("last", [True, "link"])
def test_checkpoints_by_steps_with_a_last_one(last: Any, fit: Any, lit_class: Any, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(
        tmp_path / "kept", "{step}", every_n_train_steps=2, save_top_k=2, monitor="step", mode="max", save_last=last
    )
    module, _ = fit(keeper, enable_checkpointing=True)
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"step=6.ckpt", "step=8.ckpt", "last.ckpt"}
    assert (tmp_path / "kept" / "last.ckpt").is_symlink() == (last == "link")
    adapter = load_adapter(lit_class().net, tmp_path / "kept" / "last.ckpt")
    assert torch.equal(adapter.theta, module.net.gpart.default.theta)
