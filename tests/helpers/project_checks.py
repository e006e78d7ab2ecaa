"""What every project of ``tests/scenarios/projects`` is asked: one look for all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gpart.callbacks import GPartCallback, load_from_checkpoint

both_packages = pytest.mark.parametrize(
    "package", ["lightning.pytorch", pytest.param("pytorch_lightning", marks=pytest.mark.slow)]
)
"""Most projects import the one, the older the other."""


@dataclass(frozen=True)
class Project:
    """A stranger's project, in one of the packages."""

    package: str
    build: Callable[[], Any]
    """Makes the LightningModule; it logs its ``loss``."""

    data: Callable[[], DataLoader]
    line: dict[str, Any]
    """The arguments of the one line."""

    answer: Callable[[Any], Tensor]
    """What a module is for."""

    fit: dict[str, Any] = field(default_factory=dict)
    """What its own ``Trainer.fit`` is given beside the data, such as ``weights_only=False``."""

    read: dict[str, Any] = field(default_factory=dict)
    """What its own ``load_from_checkpoint`` is given."""

    def with_line(self, **more: Any) -> Project:
        return replace(self, line={**self.line, **more})

    @property
    def pl(self) -> Any:
        return importlib.import_module(self.package)


@dataclass(frozen=True)
class Run:
    """What a fit leaves behind."""

    module: Any
    losses: list[Tensor]
    callback: GPartCallback | None
    path: str


def loader(*tensors: Tensor, size: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), size)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.detach().reshape(-1).contiguous().view(torch.uint8) for x in (a, b)))


def assert_same_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not same(found[name], value)] == []


def run(
    project: Project,
    folder: Path,
    line: bool = True,
    epochs: int = 1,
    resume: str | None = None,
    module: Any = None,
    callbacks: tuple[Any, ...] = (),
) -> Run:
    """Fits, with the one line or without it; each epoch is a file in the folder."""
    pl = project.pl

    class Losses(pl.Callback):
        seen: list[Tensor] = []  # noqa: RUF012  # the class is this run's own

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.seen.append(trainer.callback_metrics["loss"].detach().clone())

    keeper = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    method = GPartCallback(**project.line) if line else None
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[*([method] if method else []), *callbacks, Losses(), keeper], **quiet
    )
    module = module or project.build()
    torch.manual_seed(0 if resume is None else 99)
    trainer.fit(module, project.data(), ckpt_path=resume, **project.fit)
    return Run(module, Losses.seen, method, keeper.best_model_path)


def check_unchanged(project: Project, folder: Path) -> Run:
    """It trains without the line: else it would be no project."""
    done, fresh = run(project, folder / "plain", line=False), project.build().state_dict()
    assert all(loss.isfinite() for loss in done.losses)
    assert not all(same(value, fresh[name]) for name, value in done.module.state_dict().items())
    return done


def check_line(project: Project, folder: Path) -> Run:
    """With the line it starts as it would have, trains theta, and its frozen weights have their bits."""
    plain, done, fresh = check_unchanged(project, folder), run(project, folder / "line"), project.build()
    assert len(done.losses) == len(plain.losses)
    assert same(done.losses[0], plain.losses[0])
    adapter = done.callback.adapter
    assert adapter.theta.count_nonzero() > 0
    (path,) = [name for name, part in done.module.named_modules() if part is adapter.model]
    before, now = fresh.get_submodule(path).state_dict(), adapter.model.state_dict()
    assert adapter.plan.frozen
    assert [name for name in adapter.plan.frozen if not same(now[name], before[name])] == []
    return done


def check_resume(project: Project, folder: Path) -> None:
    """Two epochs in one go are one, a file, and one more: every loss, theta, the head and all else, to the bit."""
    whole = run(project, folder / "whole", epochs=2)
    half = run(project, folder / "half")
    rest = run(project, folder / "rest", epochs=2, resume=half.path)
    expected = whole.losses[len(half.losses) :]
    assert len(rest.losses) == len(expected) > 0
    assert all(map(same, rest.losses, expected))
    assert_same_states(rest.module.state_dict(), whole.module.state_dict())


def check_load(project: Project, folder: Path) -> None:
    """gpart's own ``load_from_checkpoint`` gives the module that was trained."""
    done = run(project, folder / "load")
    loaded = load_from_checkpoint(type(done.module), done.path, **project.read)
    assert same(project.answer(loaded), project.answer(done.module))


def check_merged(project: Project, folder: Path) -> None:
    """With ``checkpoints="merged"`` the project's own reader, which knows no callback, does; and fit resumes."""
    merged = project.with_line(checkpoints="merged")
    done = run(merged, folder / "merged")
    loaded = type(done.module).load_from_checkpoint(done.path, **project.read)
    assert loaded.state_dict().keys() == project.build().state_dict().keys()
    assert same(project.answer(loaded), project.answer(done.module))
    check_resume(merged, folder)


def check_merged_at_end(project: Project, folder: Path) -> Any:
    """With ``merge_at_end=True`` a plain module is left: returns it, when it has been saved and read by plain torch."""
    done = run(project.with_line(merge_at_end=True), folder / "end")
    fresh = project.build()
    assert done.module.state_dict().keys() == fresh.state_dict().keys()
    torch.save(done.module.state_dict(), folder / "own.pt")
    fresh.load_state_dict(torch.load(folder / "own.pt", weights_only=True), strict=True)
    assert same(project.answer(fresh), project.answer(done.module))
    assert not same(project.answer(fresh), project.answer(project.build()))
    return done.module


def check_files(project: Project, folder: Path) -> None:
    """Its files by every way: gpart's reader, its own reader of merged checkpoints, and plain torch's."""
    check_load(project, folder)
    check_merged(project, folder)
    check_merged_at_end(project, folder)
