"""A colleague's machine: an adapter folder that someone else has trained, used as it is, and with the three likeliest mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_words import as_json
from torch import nn

from gpart import GPartError, load_adapter
from gpart.bases.models import quiet
from gpart.cli import main
from gpart.serialization.folder import read_folder

LABELS = ["odd", "fine"]  # not GLUE's own names, so that they have to come from the folder


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, glue_folder: Path) -> Path:
    """What the colleague gets, an adapter folder and a recipe, and beside them the base that it was trained on."""
    above = tmp_path_factory.mktemp("sent")
    shutil.copytree(tiny_encoder, above / "base")
    recipe = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "max_epochs": 3, "logger": False, "default_root_dir": str(above / "run"),
            "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss"}},
                {"class_path": "PredictionWriter", "init_args": {"path": "out.jsonl"}},
            ],
        },
        "model": {"class_path": "SequenceClassifier", "init_args": {"model": str(above / "base")}},
        "data": {
            "class_path": "GLUEDataModule",
            "init_args": {"task": "cola", "model": str(above / "base"), "path": str(glue_folder), "max_length": 24},
        },
    }  # fmt: skip
    (above / "used.yaml").write_text(yaml.safe_dump(recipe))
    recipe["model"]["init_args"]["labels"] = LABELS
    recipe["method"] = {
        "class_path": "GPartCallback",
        "init_args": {
            "d": 40, "target_modules": ["query", "value"], "modules_to_save": "head",
            "save_folder": str(above / "adapter"),
        },
    }  # fmt: skip
    (above / "made.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", f"--config={above / 'made.yaml'}"]) == 0
    return above


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPART_TRACEBACK", raising=False)


def used(sent: Path, command: str, *more: str) -> list[str]:
    method = ["--method=GPartCallback", f"--method.adapter={sent / 'adapter'}"]
    return [command, f"--config={sent / 'used.yaml'}", *method, *more]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The last line of a command that refuses; before it Transformers reports on the new head."""
    capsys.readouterr()
    assert main(list(words)) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("gpart: error: ")]
    return line


def other_base(tiny_encoder: Path, folder: Path, **settings: Any) -> Path:
    """Of the same class, with other numbers."""
    from transformers import RobertaConfig, RobertaModel

    shutil.copytree(tiny_encoder, folder)
    torch.manual_seed(9)
    with quiet():
        RobertaModel(RobertaConfig.from_pretrained(folder, **settings)).save_pretrained(folder)
    return folder


def test_the_folder_says_what_it_is(sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = as_json(capsys, "inspect", str(sent / "adapter"))["about"]
    score = told.pop("score")
    assert told == {
        "base": str(sent / "base"),
        "model_class": "RobertaForSequenceClassification",
        "task": "classification",
        "labels": LABELS,
        "inputs": {"max_length": 24},
    }
    (path,) = (sent / "run" / "checkpoints").glob("epoch=*.ckpt")
    best = torch.load(path, weights_only=True)
    keeper = next(state for key, state in best["callbacks"].items() if key.startswith("ModelCheckpoint"))
    assert score == {"step": best["global_step"], "monitor": "val/loss", "value": float(keeper["best_model_score"])}
    assert main(["inspect", str(sent / "adapter")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("RobertaForSequenceClassification", "odd, fine", "max_length 24", "val/loss"):
        assert part in said


def test_one_call_in_python_builds_the_base_and_gives_both(sent: Path, tiny_encoder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model, adapter = load_adapter(sent / "adapter")
    assert type(model).__name__ == "RobertaForSequenceClassification"
    assert model.config.id2label == dict(enumerate(LABELS))
    assert not model.training
    assert adapter.model is model
    assert adapter.about.labels == LABELS
    assert adapter.about.score == {}  # what is trained further is not what was scored
    with quiet():
        plain = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2).eval()
    load_adapter(plain, sent / "adapter")
    words = torch.arange(5, 15)[None]
    assert torch.equal(model(words).logits, plain(words).logits)
    # A base that lies elsewhere is given; it is checked all the same.
    again, _ = load_adapter(str(sent / "adapter"), base=str(tiny_encoder))
    assert torch.equal(model(words).logits, again(words).logits)


def test_one_command_uses_the_adapters_own_names(sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(used(sent, "predict")) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert rows
    assert {row["label"] for row in rows} <= set(LABELS)


def test_the_wrong_base_model(
    sent: Path, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, folder = str(other_base(tiny_encoder, tmp_path / "wrong")), sent / "adapter"
    base = read_folder(folder)[0].base
    said = refused(capsys, *used(sent, "test", f"--model.model={wrong}"))
    assert f"{folder} was trained on another base model: fingerprint {base}, this model has" in said
    with pytest.raises(
        GPartError, match=rf"{folder} was trained on another base model: fingerprint {base}, this model"
    ):
        load_adapter(folder, base=wrong)
    wider = str(other_base(tiny_encoder, tmp_path / "wider", hidden_size=32))
    with pytest.raises(
        GPartError, match=rf"base '{wider}' is not this adapter's: .*here \[32, 32\], in the adapter \[16, 16\]"
    ):
        load_adapter(folder, base=wider)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_labels_in_another_order(sent: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *used(sent, command, "--model.labels=[fine,odd]"))
    assert (
        f"{sent / 'adapter'} has the classes {LABELS} in this order, and this model's config has {LABELS[::-1]}" in said
    )


def test_labels_in_another_order_in_python(sent: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            sent / "base", num_labels=2, id2label=dict(enumerate(LABELS[::-1]))
        )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GPartError, match=r"has the classes \['odd', 'fine'\].*config has \['fine'"):
        load_adapter(model, sent / "adapter")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(isinstance(module, nn.Module) and not hasattr(module, "gpart") for module in model.modules())


def test_training_may_begin_from_it_for_another_task(sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(used(sent, "fit", "--trainer.max_steps=1", "--model.labels=[wrong,right]")) == 0, (
        capsys.readouterr().err
    )
    said = refused(capsys, *used(sent, "fit", "--trainer.max_steps=1", "--model.labels=[fine,odd]"))
    assert "in this order" in said


def test_a_base_folder_that_is_not_here(sent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sent / "base").rename(sent / "moved")
    try:
        with pytest.raises(
            GPartError, match=rf"{sent / 'adapter'} was trained on '{sent / 'base'}', which it names, and"
        ):
            load_adapter(sent / "adapter")
        said = refused(capsys, "merge", str(sent / "adapter"), "merged")
        assert f"there is no model '{sent / 'base'}': no such folder. Give the base's folder or name" in said
        assert not Path("merged").exists()
        assert load_adapter(sent / "adapter", base=str(sent / "moved"))[1].size == 4 * 16 * 16
        said = refused(capsys, *used(sent, "predict"))
        assert str(sent / "base") in said
    finally:
        (sent / "moved").rename(sent / "base")


def test_what_is_no_model_and_no_adapter_is_said(sent: Path, tmp_path: Path) -> None:
    with pytest.raises(GPartError, match="load_adapter takes the model, not its name: got 'roberta-base'"):
        load_adapter("roberta-base", sent / "adapter")  # type: ignore[call-overload]
    with pytest.raises(GPartError, match="takes a model and an adapter, or an adapter alone"):
        load_adapter(nn.Linear(2, 2))  # type: ignore[call-overload]
