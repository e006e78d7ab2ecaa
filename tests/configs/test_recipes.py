"""Every shipped recipe of language understanding is run, with every overlay, and says what the paper says."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import docstring_parser
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, RobertaConfig

import gpart.datamodules
import gpart.lightning_modules
from gpart.cli import main
from gpart.cli.configs import CONFIGS, recipes
from gpart.injection.matching import saved_parameters
from gpart.studies.experiments.plan import plan
from gpart.studies.experiments.schema import read_study

NLU = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("glue*/**/*.yaml"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))

TASKS = ("cola", "mrpc", "qnli", "rte", "sst2", "stsb")
SCORE = {"cola": "matthews", "stsb": "pearson"}


def test_the_recipes_are_found() -> None:
    assert sorted(f"{folder}/{task}" for folder in ("glue", "glue-large") for task in TASKS) == NLU
    assert OVERLAYS == [
        "bitfit", "fourierft", "full-fine-tuning", "gpart-fastfood", "gpart-hash", "gpart-non-isometric", "linear-probe",
        "lora", "partial-fine-tuning", "uni-lora", "vera",
    ]  # fmt: skip
    assert {*NLU, *(f"methods/{name}" for name in OVERLAYS)} < set(recipes())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path, glue_folder: Path) -> Any:
    """Runs a command of a recipe for two steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def go(command: str, recipe: str, *more: str) -> int:
        return main(
            [
                command,
                f"--config={recipe}",
                f"--model.model={tiny_encoder}",
                f"--data.model={tiny_encoder}",
                f"--data.path={glue_folder}",
                "--data.max_length=16",
                "--trainer.accelerator=cpu",
                "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2",
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
                *more,
            ]
        )

    return go


LARGE = [recipe for recipe in NLU if recipe.startswith("glue-large/") and not recipe.endswith("/rte")]
"""Recipes that are run with the slow tests: they differ from those of RoBERTa-base in their numbers."""


@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, marks=pytest.mark.slow if recipe in LARGE else ()) for recipe in NLU]
)
def test_a_recipe_runs_fit_test_and_predict(recipe: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--method.d=50"
    assert run("fit", recipe, small) == 0
    task = recipe.split("/")[1]
    checkpoint = next(Path("runs", *recipe.split("/")).rglob("epoch=0*.ckpt"))
    capsys.readouterr()
    assert run("test", recipe, small, f"--ckpt_path={checkpoint}") == 0
    assert f"test/{SCORE.get(task, 'accuracy')}" in capsys.readouterr().out
    assert run("predict", recipe, small, f"--ckpt_path={checkpoint}") == 0
    lines = Path("runs", *recipe.split("/"), "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert set(json.loads(lines[0])) == ({"idx", "score"} if task == "stsb" else {"idx", "label", "probability"})


@pytest.mark.parametrize("recipe", NLU)
def test_a_recipes_head_and_labels_are_the_tasks(recipe: str) -> None:
    """Its values are held to the paper's by test_paper_values.py."""
    from gpart.datamodules.language import glue

    text = (CONFIGS / f"{recipe}.yaml").read_text()
    settings = yaml.safe_load(text)
    model, data, method = (settings[key]["init_args"] for key in ("model", "data", "method"))
    base = AutoModelForSequenceClassification.from_config(
        RobertaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    )
    assert saved_parameters(base, method["modules_to_save"])[0] == ["classifier"]  # what the paper trains
    assert f"gpart fit --config {recipe} --test_best true" in text
    assert tuple(model.get("labels", ())) == glue.TASKS[data["task"]].labels
    assert model["metrics"][0] == SCORE.get(data["task"], "accuracy")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_runs_and_its_checkpoint_holds_what_it_trains(
    overlay: str, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "gpart-non-isometric": ["--method.d=50"],
        "gpart-hash": ["--method.d=50"],
        "gpart-fastfood": ["--method.d=50"],
        "uni-lora": ["--method.settings.theta_d_length=30"],
        "vera": ["--method.settings.r=8"],
        "fourierft": ["--method.settings.n_frequency=20"],
    }.get(overlay, [])
    words = [f"--config=methods/{overlay}", *small, "--trainer.callbacks+=MetricsWriter"]
    words += ["--trainer.callbacks.path=metrics.json", "--test_best=true"]
    assert run("fit", "glue/rte", *words) == 0
    record = json.loads(Path("metrics.json").read_text())
    assert record["state"] == "tested"
    assert set(record["test"]) == {"test/accuracy"}
    checkpoint = next(Path("runs/glue/rte").rglob("epoch=0*.ckpt"))
    saved = torch.load(checkpoint, weights_only=True)
    trained = set(saved["gpart"]["manifest"].get("trained", []))
    layer = 4 * (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 2 * 2 * 16
    whole = (25 + 64 + 2 + 2) * 16 + 2 * layer
    head, layers = 16 * 16 + 16 + 2 * 16 + 2, 2 * 2  # query and value of two layers
    want = {
        "linear-probe": 0,
        "full-fine-tuning": whole,
        "partial-fine-tuning": layers * 16 * 16,
        "bitfit": 16 + 2 * (6 * 16 + 32 + 16),
        "lora": layers * 2 * 8 * 16,
        "vera": layers * (8 + 16),
        "fourierft": layers * 20,
        "uni-lora": 30,
        "gpart-non-isometric": 50,
        "gpart-hash": 50,
        "gpart-fastfood": 50,
    }[overlay]
    counts = record["parameters"]
    assert counts == {"trainable": want + head, "head": 0 if overlay == "full-fine-tuning" else head}
    tensors = {value.data_ptr(): value for value in saved["state_dict"].values() if value.numel()}
    assert sum(value.numel() for value in tensors.values()) == want + head
    assert not trained or sum(1 for name in trained if name.startswith("classifier")) == 4
    out = capsys.readouterr().out
    assert "trainable parameters" in out


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_sets_the_method_and_its_rates_and_nothing_else(overlay: str) -> None:
    settings = yaml.safe_load((CONFIGS / "methods" / f"{overlay}.yaml").read_text())
    if overlay in ("gpart-hash", "gpart-fastfood"):  # theta moves the weights as far as the recipe's does
        assert settings == {
            "method": {"class_path": "GPartCallback", "init_args": {"projection": overlay.removeprefix("gpart-")}}
        }
        return
    assert set(settings) == {"method", "model"}
    assert set(settings["model"]) == {"init_args"}
    assert set(settings["model"]["init_args"]) <= {"lr", "head_lr"}


def test_the_non_isometric_overlay_keeps_the_recipes_other_settings(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("fit", "glue/rte", "--config=methods/gpart-non-isometric", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    method, model = printed["method"]["init_args"], printed["model"]["init_args"]
    assert (method["isometric"], method["d"], method["dropout"]) == (False, 23040, 0.1)
    assert (model["lr"], model["head_lr"]) == (2e-4, 1e-2)


@pytest.mark.parametrize("projection", ["hash", "fastfood"])
def test_another_map_keeps_the_recipes_settings(projection: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("fit", "glue/rte", f"--config=methods/gpart-{projection}", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    method, model = printed["method"]["init_args"], printed["model"]["init_args"]
    assert (method["projection"], method["isometric"], method["d"]) == (projection, True, 23040)
    assert (method["dropout"], model["lr"], model["head_lr"]) == (0.1, 5e-3, 1e-2)


STUDIES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("studies/**/glue*.yaml")
)

# The paper's averages, ../shared/experiments.md.
AVERAGES = {
    "studies/glue-base": {
        "LP": 66.0, "FF": 83.8, "LoRA (r = 8)": 83.5, "BitFit": 83.5, "VeRA (r = 1024)": 83.4, "Uni-LoRA": 83.0,
        "GPart": 83.7, "GPart non-isometric": 80.7,
    },
    "studies/glue-large": {
        "LP": 64.7, "FF": 86.9, "LoRA (r = 8)": 86.7, "BitFit": 85.9, "VeRA (r = 256)": 85.8, "Uni-LoRA": 85.9,
        "GPart": 86.3, "GPart non-isometric": 84.8,
    },
}  # fmt: skip


def test_the_studies_are_the_papers_tables() -> None:
    assert sorted(AVERAGES) == STUDIES
    for name, averages in AVERAGES.items():
        study = read_study(CONFIGS / f"{name}.yaml")
        assert {row: figures["Avg"] for row, figures in study.paper.items()} == averages
        cells = plan(study)
        assert len(cells) == 6 * 9
        for cell in cells:
            words = cell.candidates[0].runs[0].words
            named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
            assert set(named) <= set(recipes())
            # GPart's own settings are the recipe's: nothing is tuned.
            assert (len(cell.candidates) == 1) == (cell.labels["method"] == "GPart")
            score = SCORE.get(named[0].split("/")[1], "accuracy")
            assert cell.candidates[0].runs[0].metric == score


SEEDED = {
    "GPart": "seed", "GPart non-isometric": "seed", "Uni-LoRA": "settings.proj_seed",
    "VeRA": "settings.projection_prng_key", "FourierFT": "settings.random_loc_seed",
}  # fmt: skip


def own_seed(method: str) -> str | None:
    """The setting of a method's random map."""
    return SEEDED.get(method.split(" (", maxsplit=1)[0])


@pytest.mark.parametrize(
    "name", ["studies/glue-base", "studies/glue-large", "studies/vision-base", "studies/vision-large"]
)
def test_the_runs_seed_is_that_of_the_split_and_of_the_random_map(name: str) -> None:
    """A deviation over seeds of one partition leaves the partition's own part out."""
    for cell in plan(read_study(CONFIGS / f"{name}.yaml")):
        setting = own_seed(cell.labels["method"])
        for candidate in cell.candidates:
            for run in candidate.runs:
                seeds = [word for word in run.words if "seed" in word.split("=")[0] or "prng" in word]
                own = [f"--method.{setting}={run.seed}"] if setting else []
                assert seeds == [f"--data.seed={run.seed}", *own, f"--seed_everything={run.seed}"]


@pytest.mark.parametrize("method", [*AVERAGES["studies/glue-base"], "FourierFT (n = 1000)"])
def test_the_studys_words_are_understood(method: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each method's run of the study is parsed by the real command, whose settings then hold what the study sets."""
    for name in STUDIES:
        study = read_study(CONFIGS / f"{name}.yaml")
        for cell in plan(study):
            if cell.labels["method"] == method and cell.labels["task"] == "RTE":
                with pytest.raises(SystemExit) as stop:
                    main([*cell.candidates[-1].runs[-1].words, "--print_config"])
                assert stop.value.code == 0
                printed = yaml.safe_load(capsys.readouterr().out)
                assert printed["seed_everything"] == printed["data"]["init_args"]["seed"] == 2
                of_method = printed["method"]["init_args"]
                if setting := own_seed(method):
                    *inner, last = setting.split(".")
                    assert (of_method["settings"] if inner else of_method)[last] == 2
                if dropout := {"LoRA": "lora_dropout", "VeRA": "vera_dropout", "Uni-LoRA": "unilora_dropout"}.get(
                    method.split(" (", maxsplit=1)[0]
                ):
                    assert of_method["settings"][dropout] == 0.1
                # Vectors are not decayed but for GPart's (G7); the head's weights are, with every method.
                vectors = method.startswith(("VeRA", "FourierFT", "Uni-LoRA"))
                decay = printed["model"]["init_args"]
                assert (decay["weight_decay"], decay["head_weight_decay"]) == ((0.0, 0.1) if vectors else (0.1, None))
                assert printed["trainer"]["callbacks"][-1]["class_path"].endswith("MetricsWriter")
                for key, value in cell.candidates[-1].tuned.items():
                    assert printed["model"]["init_args"][key.removeprefix("model.")] == value
                if method.startswith("VeRA"):
                    assert printed["method"]["init_args"]["settings"]["r"] == int(method[10:-1])


CLASSES = [getattr(room, name) for room in (gpart.lightning_modules, gpart.datamodules) for name in room.__all__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_its_line_of_help(cls: type) -> None:
    """jsonargparse shows a class's settings without their help where it can't parse the docstring."""
    documented = docstring_parser.parse(inspect.getdoc(cls), style=docstring_parser.DocstringStyle.GOOGLE).params
    assert [one.arg_name for one in documented] == list(inspect.signature(cls).parameters)
    assert all(one.description for one in documented)
