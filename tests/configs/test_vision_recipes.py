"""Every shipped recipe of vision is run on its data set's layout, with every overlay, and says what the paper says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpart.cli import main
from gpart.cli.configs import CONFIGS, recipes
from gpart.datamodules import ImageDataModule
from gpart.studies.experiments.plan import plan
from gpart.studies.experiments.schema import read_study

VISION = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("vision*/**/*.yaml"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))

DATASETS = ("cifar10", "cifar100", "dtd", "eurosat", "fgvc-aircraft", "oxford-pets", "resisc45", "stanford-cars")


def test_the_recipes_are_found() -> None:
    assert sorted(f"{folder}/{name}" for folder in ("vision", "vision-large") for name in DATASETS) == VISION
    for recipe in VISION:
        assert f"gpart fit --config {recipe} --test_best true" in (CONFIGS / f"{recipe}.yaml").read_text()


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT of two layers without a head, with its processor, as a Hugging Face folder."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_vit: Path, image_folders: Any) -> Any:
    """Runs a command of a recipe for two steps, in a folder of its own, on fake pictures in the data set's layout."""
    monkeypatch.chdir(tmp_path)
    written: dict[str, dict[str, str]] = {}
    classes: dict[str, int] = {}

    def go(command: str, recipe: str, *more: str) -> int:
        settings = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
        dataset = settings["data"]["init_args"]["dataset"]
        if dataset not in written:
            written[dataset] = image_folders.write(dataset, tmp_path / "data", monkeypatch)
            data = ImageDataModule(model=str(tiny_vit), **written[dataset])
            data.setup("test")
            classes[dataset] = data.num_labels
        own = [f"--data.{key}={value}" for key, value in written[dataset].items() if key != "dataset"]
        return main(
            [
                command,
                f"--config={recipe}",
                f"--model.model={tiny_vit}",
                f"--data.model={tiny_vit}",
                f"--model.num_labels={classes[dataset]}",
                *own,
                "--data.num_workers=0",
                "--data.batch_size=4",
                "--trainer.accelerator=cpu",
                "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2",
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
                *more,
            ]
        )

    return go


QUICK = ("vision/oxford-pets", "vision/dtd")
"""The recipes that are run by default: a data set with its own test split, and one that is split here."""


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=() if recipe in QUICK else pytest.mark.slow) for recipe in VISION],
)
def test_a_recipe_runs_fit_test_and_predict(recipe: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--method.d=50"
    assert run("fit", recipe, small) == 0
    folder = Path("runs", *recipe.split("/"))
    checkpoint = next(folder.rglob("epoch=0*.ckpt"))
    capsys.readouterr()
    assert run("test", recipe, small, f"--ckpt_path={checkpoint}") == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert run("predict", recipe, small, f"--ckpt_path={checkpoint}") == 0
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert lines
    assert set(lines[0]) == {"idx", "file", "label", "probability"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_runs_and_all_that_it_trains_is_clipped(
    overlay: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a norm that every method's gradients have; over two micro-batches, which make one step of the recipe."""
    clipped: list[tuple[int, float, float, float]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: Any, limit: float, *given: Any, **more: Any) -> torch.Tensor:
        parameters = list(parameters)
        before = clip(parameters, limit, *given, **more)
        after = torch.stack([one.grad.norm() for one in parameters if one.grad is not None]).norm()
        clipped.append((sum(one.numel() for one in parameters), limit, float(before), float(after)))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    small = {
        "gpart-non-isometric": ["--method.d=50"],
        "gpart-hash": ["--method.d=50"],
        "gpart-fastfood": ["--method.d=50"],
        "uni-lora": ["--method.settings.theta_d_length=30"],
        "vera": ["--method.settings.r=8"],
        "fourierft": ["--method.settings.n_frequency=20"],
    }.get(overlay, [])
    words = [f"--config=methods/{overlay}", *small, "--trainer.gradient_clip_val=0.001"]
    words += ["--trainer.callbacks+=MetricsWriter"]
    words += ["--trainer.callbacks.path=metrics.json", "--test_best=true"]
    assert run("fit", "vision/cifar10", *words) == 0
    record = json.loads(Path("metrics.json").read_text())
    assert record["state"] == "tested"
    assert record["fit"]["steps"] == 1
    ((count, limit, before, after),) = clipped
    assert (count, limit) == (record["parameters"]["trainable"], 0.001)
    assert before > 0.01
    assert after == pytest.approx(0.001, rel=0.01)
    head = 3 * (16 + 1)
    layers = 2 * 2  # query and value of two layers
    want = {
        "linear-probe": 0,
        "lora": layers * 2 * 8 * 16,
        "vera": layers * (8 + 16),
        "fourierft": layers * 20,
        "uni-lora": 30,
        "gpart-non-isometric": 50,
        "gpart-hash": 50,
        "gpart-fastfood": 50,
    }
    if overlay in want:
        assert record["parameters"] == {"trainable": want[overlay] + head, "head": head}


def test_the_offline_recipe_runs(run: Any) -> None:
    words = ["--model.labels=null", "--data.train_size=null", "--data.image_size=null", "--method.d=50"]
    assert run("fit", "quickstart-vision", *words, "--test_best=true") == 0
    assert Path("adapters/quickstart-vision/adapter_model.safetensors").is_file()


# The paper's Table 3, ../shared/experiments.md; each row's last figure is the paper's average.
TABLE = {
    "studies/vision-base": {
        "LP": [90.28, 25.76, 96.41, 69.77, 88.72, 17.44, 74.22, 84.28, 68.36],
        "FF": [93.14, 79.78, 98.92, 77.68, 99.05, 54.84, 96.13, 92.38, 86.49],
        "FourierFT (72 K)": [93.21, 46.11, 98.58, 75.09, 98.29, 27.51, 91.97, 91.20, 77.75],
        "FourierFT (239 K)": [93.05, 56.36, 98.69, 77.30, 98.78, 32.44, 94.26, 91.45, 80.29],
        "Uni-LoRA": [94.00, 76.06, 98.77, 76.99, 98.86, 50.36, 94.08, 92.10, 85.15],
        "GPart": [93.85, 77.12, 98.77, 77.52, 99.00, 56.84, 94.29, 92.11, 86.19],
    },
    "studies/vision-large": {
        "LP": [91.11, 37.91, 97.78, 73.33, 92.64, 24.62, 82.02, 84.28, 72.96],
        "FF": [94.43, 88.90, 99.15, 81.79, 99.04, 68.25, 96.43, 93.58, 90.20],
        "FourierFT (144 K)": [94.46, 69.56, 99.10, 80.83, 98.65, 39.92, 93.86, 93.31, 83.71],
        "FourierFT (480 K)": [94.84, 79.14, 99.08, 81.88, 98.66, 51.28, 95.20, 93.37, 86.68],
        "Uni-LoRA": [94.65, 83.16, 98.77, 81.35, 98.89, 58.89, 95.24, 93.08, 88.00],
        "GPart": [93.86, 85.20, 99.11, 78.74, 99.08, 61.48, 95.09, 92.59, 88.14],
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_the_study_is_the_papers_table(name: str) -> None:
    study = read_study(CONFIGS / f"{name}.yaml")
    assert {row: list(figures.values()) for row, figures in study.paper.items()} == TABLE[name]
    cells = plan(study)
    assert len(cells) == 8 * len(TABLE[name])
    for cell in cells:
        words = cell.candidates[0].runs[0].words
        named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        assert set(named) <= set(recipes())
        assert named[0].split("/")[0] == ("vision" if name.endswith("base") else "vision-large")
        assert (len(cell.candidates) == 1) == (cell.labels["method"] == "GPart")
        assert len(cell.candidates[0].runs) == 5
        # Their sizes: n in each of 24 or 48 layers.
        method, layers = cell.labels["method"], 24 if name.endswith("base") else 48
        if method.startswith("FourierFT"):
            (frequencies,) = (int(word.split("=")[1]) for word in words if "n_frequency" in word)
            assert frequencies * layers // 1000 - int(method.split("(")[1].split()[0]) in (0, 1)  # the paper has 239 K
        if method == "Uni-LoRA":
            assert f"--method.settings.theta_d_length={3000 * layers}" in words
            assert "--method.settings.unilora_dropout=0.0" in words
