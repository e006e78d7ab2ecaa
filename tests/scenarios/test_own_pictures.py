"""Folders of one's own pictures, one of them damaged: from the folder to labels of new ones, by the command."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gpart.cli import main

SHAPES = Path(__file__).resolve().parent.parent.parent / "examples" / "data" / "shapes"


@pytest.fixture
def gpart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command of the recipe on a tiny ViT, in a folder of its own with a copy of the example pictures."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    shutil.copytree(SHAPES, tmp_path / "shapes")
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    small = ["--trainer.max_epochs=2", "--model.model=vit", "--method.d=50", *quiet]
    return lambda command, *more: main([command, "--config=pictures", *small, *more])


def test_a_damaged_picture_is_told_first_and_left_out_on_request(
    gpart: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("shapes/square/square-07.png")
    path.write_bytes(path.read_bytes()[:90])
    assert gpart("fit", "--data.path=shapes") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("gpart: error: shapes: 1 bad: ")
    assert "square/square-07.png: " in said
    assert not list(Path().rglob("*.ckpt"))

    with pytest.warns(UserWarning, match=r"shapes: 1 left out: .*square/square-07\.png"):
        assert gpart("fit", "--data.path=shapes", "--data.on_bad_row=skip", "--test_best=true") == 0
    shown = capsys.readouterr().out
    assert "test/accuracy/triangle" in shown  # the classes' names are the folders'
    assert Path("adapters/pictures/adapter_model.safetensors").is_file()


def test_a_folder_trains_and_new_pictures_are_labelled(gpart: Any) -> None:
    assert gpart("fit", "--data.path=shapes") == 0
    for name, at in (("circle", ""), ("square", "more"), ("triangle", "more/deep")):
        (Path("new") / at).mkdir(parents=True, exist_ok=True)
        shutil.copy(SHAPES / name / f"{name}-00.png", Path("new") / at / f"{name}.png")
    asked = ["--method.adapter=adapters/pictures", "--data.path=new", "--output=out.csv"]
    assert gpart("predict", *asked) == 0
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["idx"], row["file"]) for row in rows] == [
        ("0", "circle.png"),
        ("1", "more/deep/triangle.png"),
        ("2", "more/square.png"),
    ]
    assert {row["label"] for row in rows} <= {"circle", "square", "triangle"}
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
