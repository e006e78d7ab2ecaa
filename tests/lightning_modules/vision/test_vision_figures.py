"""The confusion matrix and the worst mistakes: what is drawn, where it goes, and that nothing else changes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from gpart.lightning_modules import ImageClassifier
from gpart.lightning_modules.vision.figures import (
    Mistake,
    confusion_figure,
    mistakes_figure,
    rendered,
    shown,
    worst_mistakes,
)

NAMES = ["ant", "bee", "cow"]


class Read(nn.Module):
    """Logits are the pictures' first three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)[:, :3]


def module() -> ImageClassifier:
    own = ImageClassifier(num_labels=3, labels=NAMES, head="")
    own.model = Read()
    return own


def loader(wrong: int) -> DataLoader:
    """Eight pictures of which the first so many are taken for the next class, with less and less confidence."""
    pictures, labels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    for i in range(8):
        pictures[i].view(-1)[:3] = 0.0
        pictures[i].view(-1)[(labels[i] + (i < wrong)) % 3] = 5.0 - i / 4
    rows = [(pictures[i], labels[i], i, f"{i}.png") for i in range(8)]
    names = ("pixel_values", "labels", "idx", "file")

    def collate(rows: list[Any]) -> dict[str, Any]:
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        return {key: torch.stack(value) if key in names[:2] else list(value) for key, value in columns.items()}

    return DataLoader(rows, 4, collate_fn=collate)


def trainer(logger: Any, **more: Any) -> Trainer:
    quiet = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return Trainer(**{"accelerator": "cpu", "logger": logger, "max_epochs": 2, **quiet, **more})


def images(folder: str | Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The event files' pictures: (step, pixels) by tag."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {
        tag: [(one.step, np.asarray(Image.open(io.BytesIO(one.encoded_image_string)))) for one in events.Images(tag)]
        for tag in events.Tags()["images"]
    }


def test_tensorboard_gets_both_pictures_after_each_validation_and_test(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    run, own = trainer(logger, num_sanity_val_steps=2), module()
    run.fit(own, loader(3), loader(3))
    run.test(own, loader(0), verbose=False)
    logger.finalize("success")
    found = images(logger.log_dir)
    # Two epochs of two steps; none of the sanity check, and no mistakes where there are none.
    assert {tag: [step for step, _ in pictures] for tag, pictures in found.items()} == {
        "val/confusion": [2, 4],
        "val/mistakes": [2, 4],
        "test/confusion": [4],
    }
    for pictures in found.values():
        for _, pixels in pictures:
            assert pixels.ndim == 3
            assert pixels.std() > 10  # something is drawn


def test_the_mistakes_are_those_of_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    from gpart.lightning_modules.vision import figures

    draw = figures.mistakes_figure
    monkeypatch.setattr(
        figures, "mistakes_figure", lambda known, names: drawn.append([one.file for one in known]) or draw(known, names)
    )
    run, own = trainer(TensorBoardLogger(tmp_path)), module()
    run.validate(own, loader(2), verbose=False)
    run.test(own, loader(5), verbose=False)
    assert drawn == [["0.png", "1.png"], [f"{i}.png" for i in range(5)]]  # the most confident first, over both batches


@pytest.mark.parametrize("kind", ["none", "csv", "several"])
def test_other_loggers_get_no_picture_and_no_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    from gpart.lightning_modules.vision import figures

    draw = figures.confusion_figure
    monkeypatch.setattr(figures, "confusion_figure", lambda *given: drawn.append("") or draw(*given))
    csv, board = CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")
    run = trainer({"none": False, "csv": csv, "several": [csv, board]}[kind])
    run.test(module(), loader(3), verbose=False)
    assert len(drawn) == (kind == "several")
    assert run.callback_metrics["test/accuracy"] == pytest.approx(5 / 8)


def test_only_the_first_rank_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, own = trainer(TensorBoardLogger(tmp_path)), module()
    run.validate(own, loader(2), verbose=False)
    own.trainer = run
    assert own._boards()
    monkeypatch.setattr(type(run), "is_global_zero", False)
    assert own._boards() == []


def test_the_worst_mistakes_over_batches_are_those_of_all() -> None:
    torch.manual_seed(2)
    pictures, logits, labels = torch.randn(50, 3, 4, 4), 3 * torch.randn(50, 5), torch.randint(5, (50,))
    files = [str(i) for i in range(50)]
    known: list[Mistake] = []
    for i in range(0, 50, 7):
        at = slice(i, i + 7)
        known = worst_mistakes(known, pictures[at], logits[at], labels[at], files[at], most=6)
    probability = logits.softmax(-1)
    wrong = [i for i in range(50) if probability[i].argmax() != labels[i]]
    want = sorted(wrong, key=lambda i: -probability[i].max().item())[:6]
    assert [mistake.file for mistake in known] == [str(i) for i in want]
    for mistake, i in zip(known, want, strict=True):
        assert (mistake.label, mistake.answer) == (labels[i].item(), probability[i].argmax().item())
        assert mistake.confidence == pytest.approx(probability[i].max().item())
        assert np.array_equal(mistake.picture, shown(pictures[i]))


def test_a_picture_is_scaled_to_its_own_range_whatever_its_channels() -> None:
    picture = torch.randn(3, 5, 7) * 9 - 4
    pixels = shown(picture)
    assert pixels.shape == (5, 7, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)
    at = np.unravel_index(pixels.argmax(), pixels.shape)
    assert picture[at[2], at[0], at[1]] == picture.max()  # rows are rows, and channels channels
    grey = shown(picture[:1])
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.array_equal(shown(torch.cat([picture, picture])), pixels)
    assert not shown(torch.full((3, 2, 2), 7.0)).any()
    assert shown(torch.tensor([[[float("nan"), 1.0]]])).shape == (1, 2, 3)


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_confusion_matrix_has_truth_in_rows_and_numbers_in_cells() -> None:
    figure = confusion_figure(torch.tensor([[6, 2, 0], [0, 1, 0], [0, 0, 0]]), NAMES)
    axes = figure.axes[0]
    assert np.allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "6", (1, 0): "2", (1, 1): "1"}
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("class given", "true class")
    assert axes.get_title() == "9 pictures, 77.78 % right"


@pytest.mark.parametrize(("classes", "numbers", "names"), [(20, 20, 20), (21, 0, 21), (40, 0, 40), (41, 0, 0)])
def test_what_would_not_be_legible_is_left_out(classes: int, numbers: int, names: int) -> None:
    figure = confusion_figure(torch.eye(classes).long(), [f"class {i}" for i in range(classes)])
    assert len(texts(figure)) == numbers
    assert len(figure.axes[0].get_yticklabels()) == len(figure.axes[0].get_xticklabels()) == names
    height, width, _ = rendered(figure).shape
    assert max(height, width) <= 1800


def test_a_grid_says_truth_answer_and_file_and_takes_any_name() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    long = "/data/" + 40 * "x" + "/end.png"
    mistakes = [Mistake(0.987, 0, 1, "a$b_{$.png", picture), Mistake(0.5, 2, 0, long, picture)] * 3
    figure = mistakes_figure(mistakes, ["$x^{", "bee", "cow"])
    assert len(figure.axes) == 8  # two rows of four, two of them empty
    first, second = (axes.get_title().splitlines() for axes in figure.axes[:2])
    assert first == ["true: $x^{", "99 %: bee", "a$b_{$.png"]
    assert second[:2] == ["true: cow", "50 %: $x^{"]
    assert second[2].startswith("…")
    assert second[2].endswith("/end.png")
    assert len(second[2]) == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rendered(figure)  # mathematical text would fail here
        rendered(confusion_figure(torch.eye(2), ["$x^{", "y"]))


def test_the_users_backend_and_figures_stay_as_they_are() -> None:
    before = mpl.get_backend()
    mpl.use("svg")
    try:
        own = plt.figure()
        rendered(confusion_figure(torch.eye(3), NAMES))
        rendered(mistakes_figure([Mistake(0.5, 0, 1, "a.png", np.zeros((2, 2, 3), np.uint8))], NAMES))
        assert mpl.get_backend() == "svg"
        assert plt.get_fignums() == [own.number]
        plt.close(own)
    finally:
        mpl.use(before)
