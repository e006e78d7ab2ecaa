"""Momentum teachers: BYOL's, MoCo's and DINO's way, a deep copy whose parameters follow by ``zip``."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gpart import GPartError
from gpart.callbacks import GPartCallback

D, MOMENTUM = 6, 0.75


def assigned(average: nn.Parameter, value: nn.Parameter) -> None:
    """As lightly's ``update_momentum``."""
    average.data = average.data * MOMENTUM + value.data * (1 - MOMENTUM)


def in_place(average: nn.Parameter, value: nn.Parameter) -> None:
    """As DINO's code."""
    average.data.mul_(MOMENTUM).add_((1 - MOMENTUM) * value.detach().data)


def by_lerp(average: nn.Parameter, value: nn.Parameter) -> None:
    with torch.no_grad():
        average.lerp_(value, 1 - MOMENTUM)


class Student(LightningModule):
    """``made``: where the teacher is copied."""

    def __init__(self, update: Any, made: str = "init") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.predictor = nn.Linear(4, 4)
        self.made, self.update, self.students, self.seen = made, update, [], []
        if made == "init":
            self.copy()

    def copy(self) -> None:
        self.teacher = copy.deepcopy(self.student)
        for value in self.teacher.parameters():
            value.requires_grad = False

    def setup(self, stage: str) -> None:
        if self.made == "setup" and not hasattr(self, "teacher"):
            self.copy()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        self.students.append(self.student[0].weight.detach().clone())
        for value, average in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            self.update(average, value)
        with torch.no_grad():
            target = self.teacher(batch[0])
        self.seen.append(self.teacher[0].weight.detach().clone())
        return (self.predictor(self.student(batch[0])) - target).square().mean()

    def predict_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.teacher(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([value for value in self.parameters() if value.requires_grad], lr=0.05)


def method(**more: Any) -> GPartCallback:
    settings = {"d": D, "target_modules": ["0"], "modules_to_save": ["3"], "module": "student", "copies": ["teacher"]}
    return GPartCallback(**{**settings, **more})


@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
@pytest.mark.parametrize("update", [assigned, in_place, by_lerp])
def test_the_teacher_is_the_average_of_the_students_weights(
    update: Any, weights: str, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = Student(update), method(weights=weights)
    base = module.student[0].weight.detach().clone()
    lit_trainer(callback, max_epochs=2).fit(module, lit_loader())
    expected = base
    for student, teacher in zip(module.students, module.seen, strict=True):
        expected = expected * MOMENTUM + student * (1 - MOMENTUM)
        torch.testing.assert_close(teacher, expected, rtol=0, atol=2e-6)
    assert not torch.equal(module.seen[-1], base)
    assert module.teacher[0]._parameters["weight"].equal(base)  # the bits, after sixteen rounded averages
    assert module.student[0]._parameters["weight"].equal(base)


@pytest.mark.parametrize("made", ["init", "setup"])
def test_a_checkpoint_has_both_thetas_and_goes_on_to_the_bit(
    made: str, tmp_path: Path, lit_trainer: Any, lit_loader: Any
) -> None:
    def run(epochs: int, folder: str, start: Path | None = None) -> tuple[Student, Path]:
        module = Student(assigned, made)
        keeper = ModelCheckpoint(tmp_path / folder, save_last=True)
        trainer = lit_trainer(method(), keeper, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, lit_loader(), ckpt_path=start)
        return module, tmp_path / folder / "last.ckpt"

    whole, _ = run(2, "whole")
    _, half = run(1, "half")
    state = torch.load(half, weights_only=True)["state_dict"]
    assert {key for key in state if key.endswith("theta")} == {
        "student.0.gpart.default.theta", "teacher.0.gpart.default.theta",
    }  # fmt: skip
    assert not [key for key in state if key in ("student.0.weight", "teacher.0.weight", "teacher.0.bias")]
    resumed, _ = run(2, "half", half)
    for key, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[key]), key


def test_a_copy_made_of_the_adapted_student_carries_the_adapter_with_it(lit_trainer: Any, lit_loader: Any) -> None:
    module = Student(assigned, "setup")
    lit_trainer(method(copies=None), max_epochs=1).fit(module, lit_loader())
    teacher = module.teacher[0].gpart["default"].theta
    assert teacher.count_nonzero() == D
    assert not teacher.requires_grad


@pytest.mark.parametrize("made", ["init", "setup"])
def test_merging_at_the_end_leaves_plain_copies_too(made: str, lit_trainer: Any, lit_loader: Any) -> None:
    kept, merged = Student(assigned, made), Student(assigned, made)
    for module, at_end in ((kept, False), (merged, True)):
        lit_trainer(method(merge_at_end=at_end), max_epochs=1).fit(module, lit_loader())
    plain = Student(assigned)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert not any(value.requires_grad for value in merged.teacher.parameters())
    x = torch.randn(4, 8)
    for of in ("student", "teacher"):
        assert [type(one) for one in getattr(merged, of).modules()] == [type(one) for one in plain.student.modules()]
        assert torch.equal(getattr(merged.eval(), of)(x), getattr(kept.eval(), of)(x))


@pytest.mark.parametrize("how", ["merge_at_end", "merged by hand"])
def test_an_evaluation_of_what_was_merged_leaves_the_teacher_its_own_weights(
    how: str, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = Student(assigned), method(merge_at_end=how == "merge_at_end")
    trainer = lit_trainer(callback, max_epochs=2)
    trainer.fit(module, lit_loader())
    if how == "merged by hand":
        for network in (module.student, module.teacher):
            network[0].gpart["default"].adapter.merge()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert not before["teacher.0.weight"].equal(before["student.0.weight"])
    trainer.predict(module, lit_loader())
    for key, value in module.state_dict().items():
        assert value.equal(before[key]), key


def test_what_is_no_copy_is_refused(lit_trainer: Any, lit_loader: Any, state_of: Any) -> None:
    module = Student(assigned)
    with torch.no_grad():
        module.teacher[0].weight[3, 4] += 1
    with pytest.raises(ValueError, match=r"copies='teacher' is no copy.*'0\.weight'"):
        lit_trainer(method()).fit(module, lit_loader())
    with pytest.raises(ValueError, match=r"copies='target' is no submodule.*'teacher'"):
        lit_trainer(method(copies=["target"])).fit(Student(assigned), lit_loader())


def said(module: LightningModule, callback: GPartCallback, lit_trainer: Any, lit_loader: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lit_trainer(callback).fit(module, lit_loader())
    return [str(one.message) for one in caught if "same numbers" in str(one.message)]


def test_a_copy_that_the_callback_was_not_told_of_is_pointed_out(lit_trainer: Any, lit_loader: Any) -> None:
    def nothing(average: nn.Parameter, value: nn.Parameter) -> None: ...

    class Loose(Student):
        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return (self.predictor(self.student(batch[0])) - self.teacher(batch[0])).square().mean()

    both = GPartCallback(d=D, target_modules=["0"])
    with pytest.raises(GPartError, match=r"module='student' to leave .* copies=\['teacher'\] besides"):
        said(Loose(nothing), both, lit_trainer, lit_loader)
    trained = Loose(nothing)
    trained.teacher.requires_grad_(True)  # as a second tower would be
    (message,) = said(trained, GPartCallback(d=D, target_modules=["0"]), lit_trainer, lit_loader)
    assert "'student' and 'teacher'" in message
    assert "module='student', copies=['teacher']" in message
    (message,) = said(Loose(nothing), method(copies=None), lit_trainer, lit_loader)
    assert "copies=['teacher']" in message
    assert said(Loose(nothing), method(), lit_trainer, lit_loader) == []


class Averaged(LightningModule):
    """As torch's own documentation has it: the average wraps a copy, follows by all parameters, and is evaluated."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(MOMENTUM))
        for name, child in [("ema", average), ("model", network)][:: 1 if first else -1]:
            self.add_module(name, child)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        self.ema.update_parameters(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("first", [False, True])
def test_a_copy_in_a_wrapper_is_pointed_out(first: bool, lit_trainer: Any, lit_loader: Any) -> None:
    whole = GPartCallback(d=D, target_modules=["0"])
    (message,) = said(Averaged(first), whole, lit_trainer, lit_loader)
    assert "module='model', copies=['ema.module']" in message
    named = GPartCallback(d=64, target_modules=["0"], module="model", modules_to_save=["2"], copies=["ema.module"])
    module = Averaged(first)
    assert said(module, named, lit_trainer, lit_loader) == []
    # At d = D without bias every weight has a number of its own, so the average is that of plain training.
    plain = Averaged(first)
    for network in (plain.model, plain.ema.module):
        network[0].bias.requires_grad_(False)
    lit_trainer().fit(plain, lit_loader())
    x = torch.randn(4, 8)
    torch.testing.assert_close(module.ema(x), plain.ema(x), atol=1e-6, rtol=0)
    assert not torch.allclose(plain.ema(x), plain.model(x), atol=1e-4)


def test_a_copy_in_a_wrapper_is_pointed_out_before_its_update_fails(lit_trainer: Any, lit_loader: Any) -> None:
    named = GPartCallback(d=D, target_modules=["0"], module="model")
    with pytest.warns(UserWarning, match=r"'ema\.module' holds the same .* copies=\['ema\.module'\]"):  # noqa: SIM117
        with pytest.raises(RuntimeError):
            lit_trainer(named).fit(Averaged(), lit_loader())


def test_frozen_weights_that_moved_are_found_at_the_save(tmp_path: Path, lit_trainer: Any, lit_loader: Any) -> None:
    """An average that writes through .data into what is frozen, seen by no version and no flag."""

    class Moves(Student):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                self.student[0].weight  # read, as anyone may
                self.student[0]._parameters["weight"].data[2, 2] += 1e-7

    keeper = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer = lit_trainer(method(), keeper, max_epochs=3, enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"1 of the \d+ frozen weights were written to in training, \['0\.weight'\]"):
        trainer.fit(Moves(assigned), lit_loader())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0.ckpt"]
    folder = tmp_path / "adapter"
    with pytest.raises(ValueError, match="frozen weights were written to"):
        lit_trainer(method(save_folder=str(folder)), max_epochs=2).fit(Moves(assigned), lit_loader())
    assert not folder.exists()
