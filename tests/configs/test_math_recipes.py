"""Every shipped recipe of mathematics is run, with every overlay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpart.cli import main
from gpart.cli.configs import CONFIGS, recipes

RECIPES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("math/**/*.yaml"))
OVERLAYS = sorted(path.stem for path in CONFIGS.rglob("methods/causal/**/*.yaml"))

PAPER = ["gemma-7b", "llama-3.1-8b", "qwen2.5-0.5b", "qwen2.5-3b", "qwen2.5-7b"]


def test_the_recipes_are_found() -> None:
    assert sorted(f"math/{name}" for name in [*PAPER, "peft-comparison"]) == RECIPES
    assert OVERLAYS == ["full-fine-tuning", "lora", "uni-lora", "vera"]
    assert {*RECIPES, *(f"methods/causal/{name}" for name in OVERLAYS), "quickstart-math"} < set(recipes())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_causal: Any, math_folders: Any) -> Any:
    """Runs a command of a recipe for two steps, in a folder of its own, on a tiny Llama whose tokenizer has every byte."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    model = tiny_causal.with_tokenizer(math_folders.tokenizer(data / "model"))
    train, gsm8k, math = (getattr(math_folders, name)(data / name) for name in ("metamath", "gsm8k", "math"))

    def go(command: str, recipe: str, *more: str) -> int:
        return main(
            [
                command,
                f"--config={recipe}",
                f"--model.model={model}",
                f"--data.model={model}",
                f"--data.train={train}",
                f"--data.gsm8k={gsm8k}",
                f"--data.math={math}",
                "--data.held_out=0.1",
                "--data.test_questions=3",
                "--model.max_new_tokens=3",
                "--trainer.accelerator=cpu",
                "--trainer.max_epochs=1",
                "--trainer.accumulate_grad_batches=1",
                "--trainer.limit_train_batches=2",
                "--trainer.val_check_interval=2",
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
                *more,
            ]
        )

    return go


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=pytest.mark.slow if recipe.endswith(("3b", "7b", "8b")) else ()) for recipe in RECIPES],
)
def test_a_recipe_runs_fit_test_and_predict(recipe: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = recipe == "math/peft-comparison"
    small = ["--method.d=50", *(["--data.val_questions=2"] if comparison else [])]
    assert run("fit", recipe, *small, *(["--test_best=true"] if comparison else [])) == 0
    folder = Path("runs", *recipe.split("/"))
    checkpoint = next(folder.rglob("epoch=0*.ckpt"))
    assert checkpoint.stat().st_size < 60_000
    if comparison:  # the comparison's four figures
        record = json.loads((folder / "metrics.json").read_text())
        assert {"test/gsm8k/exact_match", "test/gsm8k/verified_match"} < set(record["test"])
        assert record["fit"]["seconds"] > 0
        assert record["peak_memory_bytes"] > 0
        assert record["kept_bytes"] == 4 * 50
    capsys.readouterr()
    assert run("test", recipe, *small, f"--ckpt_path={checkpoint}") == 0
    shown = capsys.readouterr().out
    for benchmark in ("gsm8k",) if comparison else ("gsm8k", "math"):
        assert f"test/{benchmark}/exact_match" in shown
        (path,) = sorted(folder.rglob(f"generations/test-{benchmark}.jsonl"))[-1:]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 3
        assert all(row["gold"] is not None for row in rows)
    assert run("predict", recipe, *small, f"--ckpt_path={checkpoint}", "--data.questions=[One and one?, Two?]") == 0
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["question"] for line in sorted(lines, key=lambda line: line["idx"])] == ["One and one?", "Two?"]
    assert set(lines[0]) == {"idx", "question", "output", "answer"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_runs_and_its_checkpoint_holds_what_it_trains(overlay: str, run: Any) -> None:
    small = {
        "lora": ["--method.settings.r=2"],
        "uni-lora": ["--method.settings.theta_d_length=30"],
        "vera": ["--method.settings.r=8"],
    }.get(overlay, [])
    words = [f"--config=methods/causal/{overlay}", *small, "--trainer.callbacks+=MetricsWriter"]
    words += ["--trainer.callbacks.path=metrics.json", "--test_best=true"]
    assert run("fit", "math/qwen2.5-0.5b", *words) == 0
    record = json.loads(Path("metrics.json").read_text())
    wide, narrow = 32, 16  # of q and o; of k and v
    lora = 2 * 2 * (2 * (wide + wide) + 2 * (wide + narrow)) // 2
    want = {"lora": 2 * lora, "uni-lora": 30, "vera": 2 * (8 + wide + 8 + narrow)}
    if overlay != "full-fine-tuning":
        assert record["parameters"] == {"trainable": want[overlay], "head": 0}
    saved = torch.load(next(Path("runs/math").rglob("epoch=0*.ckpt")), weights_only=True)
    assert "gpart" in saved
    assert set(record["test"]) >= {"test/gsm8k/exact_match", "test/math/exact_match"}


@pytest.mark.slow  # it trains and generates
def test_the_offline_recipe_is_parsed_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_causal: Any, math_folders: Any
) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.chdir(tmp_path)
    model = tiny_causal.with_tokenizer(math_folders.tokenizer(tmp_path / "model"))
    words = [f"--model.model={model}", f"--data.model={model}", "--data.test_questions=3", "--method.d=50"]
    words += ["--model.max_new_tokens=3", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.max_length=1200"]
    assert main(["fit", "--config=quickstart-math", *words, "--test_best=true"]) == 0
    (path,) = Path("runs").rglob("generations/test-gsm_symbolic.jsonl")
    assert len(path.read_text().splitlines()) == 3
    assert Path("adapters/quickstart-math/adapter_config.json").is_file()


GATED = {
    "math/gemma-7b": "google/gemma-7b",
    "math/llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "math/peft-comparison": "meta-llama/Llama-3.2-3B",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_header_of_a_gated_model_says_what_to_accept_and_set(recipe: str) -> None:
    text = (CONFIGS / f"{recipe}.yaml").read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    if recipe not in GATED:
        assert "gated" not in header
        return
    assert yaml.safe_load(text)["model"]["init_args"]["model"] == GATED[recipe]
    for said in (
        f"licence at https://huggingface.co/{GATED[recipe]},",
        "`hf auth login`",
        "HF_TOKEN",
        "--model.model FOLDER --data.model FOLDER",
    ):
        assert said in header
