"""BYOL: the teacher is a deep copy of the student that follows it by a moving average over the zipped parameters."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import torch
from project_checks import Project, both_packages, check_line, check_load, check_resume, drawn, loader, run, same
from torch import Tensor, nn

INPUTS = drawn(16, 6)
SHARE = 0.5


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Byol(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.student = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
            self.predictor = nn.Linear(4, 4)
            self.teacher = copy.deepcopy(self.student)
            for parameter in self.teacher.parameters():
                parameter.requires_grad = False

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x)

        def on_train_batch_start(self, batch: Any, index: int) -> None:
            with torch.no_grad():
                for own, other in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                    other.data = other.data * SHARE + own.data * (1 - SHARE)

        def training_step(self, batch: Any, index: int) -> Tensor:
            x = batch[0]
            with torch.no_grad():
                wanted = self.teacher(x.flip(1))
            loss = -nn.functional.cosine_similarity(self.predictor(self.student(x)), wanted).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([*self.student.parameters(), *self.predictor.parameters()], lr=0.5)

    return Project(
        package,
        Byol,
        lambda: loader(INPUTS),
        {"d": 5, "target_modules": ["0"], "modules_to_save": ["2"], "module": "student", "copies": ["teacher"]},
        lambda module: torch.cat([module.student(INPUTS), module.teacher(INPUTS)]),
    )


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    done = check_line(project(package), tmp_path)
    state = done.module.state_dict()
    own, other = (
        next(value for name, value in state.items() if name.startswith(part) and name.endswith(".theta"))
        for part in ("student.", "teacher.")
    )
    assert other.count_nonzero() > 0
    assert not same(own, other)


@both_packages
def test_the_teachers_weights_are_the_average_of_the_students(package: str, tmp_path: Path) -> None:
    asked = project(package)
    base = asked.build().student[0].weight.detach().clone()
    expected = base.clone()

    class Follows(asked.pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            expected.mul_(SHARE).add_(module.student[0].weight.detach(), alpha=1 - SHARE)

    done = run(asked, tmp_path, callbacks=(Follows(),))
    assert not torch.allclose(done.module.teacher[0].weight, base, atol=1e-4)
    torch.testing.assert_close(done.module.teacher[0].weight.detach(), expected)


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    check_load(project(package), tmp_path)
    done = run(project(package).with_line(merge_at_end=True), tmp_path / "end")
    fresh = project(package).build()
    torch.save(done.module.student.state_dict(), tmp_path / "backbone.pt")
    fresh.student.load_state_dict(torch.load(tmp_path / "backbone.pt", weights_only=True), strict=True)
    assert same(fresh(INPUTS), done.module(INPUTS))
    assert done.module.state_dict().keys() == fresh.state_dict().keys()
