"""Two stages: a teacher is adapted, then a smaller student learns from it, itself adapted."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from project_checks import (
    Project,
    assert_same_states,
    both_packages,
    check_line,
    check_load,
    check_merged,
    check_resume,
    drawn,
    loader,
    run,
)
from torch import Tensor, nn

from gpart import load_adapter
from gpart.errors import GPartError

INPUTS = drawn(16, 6)
LABELS = (INPUTS[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


LINE = {"d": 7, "target_modules": ["body"], "modules_to_save": ["head"]}


def first_stage(package: str) -> Project:
    pl = importlib.import_module(package)

    class Teacher(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(16, 1)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    return Project(package, Teacher, lambda: loader(INPUTS, LABELS), LINE, lambda module: module.net(INPUTS))


def second_stage(package: str, teacher: Path) -> Project:
    pl = importlib.import_module(package)

    class Student(pl.LightningModule):
        def __init__(self, teacher: str) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.teacher, self.student = Net(16, 1), Net(8, 2)
            load_adapter(self.teacher, teacher)
            self.teacher.requires_grad_(False).eval()

        def training_step(self, batch: Any, index: int) -> Tensor:
            with torch.no_grad():
                wanted = self.teacher(batch[0]).softmax(-1)
            loss = nn.functional.cross_entropy(self.student(batch[0]), wanted)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.student.parameters(), lr=0.05)

    return Project(
        package,
        lambda: Student(str(teacher)),
        lambda: loader(INPUTS, LABELS),
        {**LINE, "module": "student"},
        lambda module: module.student(INPUTS),
    )


@pytest.fixture
def teacher(package: str, tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    run(first_stage(package).with_line(save_folder=str(folder)), tmp_path / "first")
    return folder


@both_packages
def test_with_the_line(package: str, teacher: Path, tmp_path: Path) -> None:
    asked = second_stage(package, teacher)
    done = check_line(asked, tmp_path)
    assert done.callback.adapter.model is done.module.student
    assert_same_states(done.module.teacher.state_dict(), asked.build().teacher.state_dict())


@both_packages
def test_without_a_word_on_which_network_is_meant(package: str, teacher: Path, tmp_path: Path) -> None:
    asked = second_stage(package, teacher)
    del asked.line["module"]
    with pytest.raises(GPartError, match=r"(?s)teacher.*student|student.*teacher"):
        run(asked, tmp_path / "which")


@both_packages
def test_resume(package: str, teacher: Path, tmp_path: Path) -> None:
    check_resume(first_stage(package), tmp_path / "one")
    check_resume(second_stage(package, teacher), tmp_path / "two")


@both_packages
def test_its_own_save_and_load(package: str, teacher: Path, tmp_path: Path) -> None:
    check_load(second_stage(package, teacher), tmp_path)
    check_merged(first_stage(package), tmp_path)
