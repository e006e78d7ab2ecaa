"""People's own texts, each in at most two commands of the real CLI: what a new user types, and what comes of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from gpart.cli import main
from gpart.serialization.folder import read_folder

DATA = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture
def gpart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path) -> Any:
    """Runs a command with the recipe ``text`` on a tiny encoder, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--method.d=50", "--data.max_length=32"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

    def run(command: str, *more: str) -> int:
        return main([command, "--config=text", f"--model.model={tiny_encoder}", *small, *quiet, *more])

    return run


def saved_config() -> dict[str, Any]:
    (path,) = Path("runs").rglob("config.yaml")
    return yaml.safe_load(path.read_text())


def rows_of(path: str, delimiter: str = ",") -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_a_csv_with_three_classes_and_a_bad_row(gpart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (DATA / "tickets.csv").read_text(encoding="utf-8").splitlines()
    Path("tickets.csv").write_text("\n".join([*lines[:40], "2000,,billing", *lines[40:]]) + "\n", encoding="utf-8")
    assert gpart("fit", "--data.path=tickets.csv") == 2
    err = capsys.readouterr().err
    assert "tickets.csv, row 40 (line 41): column 'message' has no text, got nothing (on_bad_row=skip" in err
    assert not list(Path().rglob("*.ckpt"))  # before the first step

    assert gpart("fit", "--data.path=tickets.csv", "--data.on_bad_row=skip") == 0
    manifest, tensors = read_folder("adapters/text")
    assert manifest.about.labels == ["billing", "delivery", "technical"]
    assert manifest.about.task == "classification"
    assert tensors["classifier.out_proj.weight"].shape[0] == 3
    config = saved_config()
    model, data = (config[key]["init_args"] for key in ("model", "data"))
    assert (model["num_labels"], model["labels"]) == (3, ["billing", "delivery", "technical"])
    assert (model["metrics"], model["problem_type"]) == (["accuracy"], "single_label_classification")
    assert (data["text"], data["label"], data["task"]) == (["message"], "team", "classification")
    assert data["model"] == model["model"]

    # The adapter's classes, for rows that have none.
    new = [{"id": f"n{i}", "message": f'late, said "{i}"\nand again'} for i in range(40)]
    pd.DataFrame(new).to_csv("new.csv", index=False)
    assert gpart("predict", "--method.adapter=adapters/text", "--data.path=new.csv", "--output=out/out.csv") == 0
    found = rows_of("out/out.csv")
    assert list(found[0]) == ["idx", "id", "message", "label", "probability"]
    assert [(row["id"], row["message"]) for row in found] == [(row["id"], row["message"]) for row in new]
    assert [row["idx"] for row in found] == [str(i) for i in range(40)]
    assert {row["label"] for row in found} <= {"billing", "delivery", "technical"}
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in found)


def test_a_checkpoint_scores_and_predicts_without_the_rows_that_it_was_trained_on(
    gpart: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes of three, in another order, and a class that the model does not know."""
    assert gpart("fit", f"--data.path={DATA / 'tickets.csv'}") == 0
    best = str(next(Path("runs").rglob("epoch=0*.ckpt")))
    saved = torch.load(best, weights_only=True)["hyper_parameters"]
    assert (saved["num_labels"], saved["labels"]) == (3, ["billing", "delivery", "technical"])
    rows = [[i, f"the app is slow {i}", ["technical", "billing"][i % 2]] for i in range(9)]
    pd.DataFrame(rows, columns=["id", "message", "team"]).to_csv("test.csv", index=False)
    capsys.readouterr()
    assert gpart("test", f"--ckpt_path={best}", "--data.path=gone.csv", "--data.test_path=test.csv") == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert gpart("predict", f"--ckpt_path={best}", "--data.path=test.csv", "--output=out.parquet") == 0
    found = pd.read_parquet("out.parquet")
    assert list(found.columns) == ["idx", "id", "message", "team", "label", "probability"]
    assert found["team"].tolist() == [row[2] for row in rows]
    pd.DataFrame([[0, "what is this now", "sales"]], columns=["id", "message", "team"]).to_csv("test.csv", index=False)
    assert (
        gpart("test", f"--ckpt_path={best}", "--data.path=gone.csv", "--data.test_path=test.csv", "--data.label=team")
        == 2
    )
    assert "test.csv, row 1 (line 2): column 'team' has 'sales', which is none of the 3" in capsys.readouterr().err


def test_a_regression(gpart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit", f"--data.path={DATA / 'stays.csv'}") == 0
    assert "val/pearson" in capsys.readouterr().out
    assert saved_config()["model"]["init_args"]["num_labels"] == 1
    Path("new.tsv").write_text("review\nThe bed was soft and the room was quiet.\n", encoding="utf-8")
    assert gpart("predict", "--method.adapter=adapters/text", "--data.path=new.tsv", "--output=out.jsonl") == 0
    (row,) = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row.pop("score") == pytest.approx(5.4, abs=4)  # the head's bias is the mean of the scores
    assert row == {"idx": 0, "review": "The bed was soft and the room was quiet."}


def test_the_columns_named_on_the_command_line_and_a_file_from_pandas(
    gpart: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pd.read_csv(DATA / "tickets.csv")
    rows["answer"] = "We have written to " + rows["message"]  # a second column of texts
    rows.to_csv("tickets.csv")  # with its index, a column without a name
    words = ["--data.path=tickets.csv", "--data.text=message", "--data.label=team"]
    assert gpart("fit", *words) == 0
    # A prediction of what was predicted keeps every column, and the rows themselves stay.
    before = Path("tickets.csv").read_bytes()
    words = ["--method.adapter=adapters/text", "--data.text=message"]
    assert gpart("predict", *words, "--data.path=tickets.csv", "--output=tickets.csv") == 2
    assert "the predictions would take the place of the rows" in capsys.readouterr().err
    assert Path("tickets.csv").read_bytes() == before
    renamed = rows.rename(columns={"team": "label"})
    renamed.to_csv("renamed.csv", index=False)
    assert gpart("predict", *words, "--data.path=renamed.csv", "--output=first.csv") == 0
    assert gpart("predict", *words, "--data.path=first.csv", "--output=second.csv") == 0
    found = pd.read_csv("second.csv")
    assert found["input_label"].tolist() == renamed["label"].tolist()
    assert found["input_input_label"].tolist() == found["label"].tolist()


def test_text_pairs(gpart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit", f"--data.path={DATA / 'pairs.tsv'}", "--data.test_held_out=0.2", "--test_best=true") == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert saved_config()["data"]["init_args"]["text"] == ["sentence1", "sentence2"]
    assert (
        gpart("predict", "--method.adapter=adapters/text", f"--data.path={DATA / 'pairs.tsv'}", "--output=out.tsv") == 0
    )
    given, found = rows_of(str(DATA / "pairs.tsv"), "\t"), rows_of("out.tsv", "\t")
    assert [row["input_label"] for row in found] == [row["label"] for row in given]
    assert {row["label"] for row in found} <= {"same", "other"}


def test_that_there_is_nothing_to_test_on_is_told_before_training(
    gpart: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpart("fit", f"--data.path={DATA / 'pairs.tsv'}", "--test_best=true") == 2
    assert "pairs.tsv has no part to test on: give --data.test_path FILE" in capsys.readouterr().err
    assert not list(Path().rglob("*.ckpt"))


def test_json_lines_and_several_classes_a_text(
    gpart: Any, capsys: pytest.CaptureFixture[str], tiny_encoder: Path
) -> None:
    assert gpart("fit", f"--data.path={DATA / 'headlines.jsonl'}") == 0
    assert read_folder("adapters/text")[0].about.labels == ["culture", "sport", "weather"]
    tagged = [json.loads(line) for line in (DATA / "headlines.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [
        {"text": row["text"], "tags": [row["label"], *(["north"] if "north" in row["text"] else [])]} for row in tagged
    ]
    Path("tags.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    capsys.readouterr()
    assert gpart("fit", "--data.path=tags.jsonl", "--method.save_folder=adapters/tags") == 0
    assert "val/f1" in capsys.readouterr().out
    about = read_folder("adapters/tags")[0].about
    assert (about.task, about.labels) == ("multi-label", ["culture", "north", "sport", "weather"])
    assert gpart("predict", "--method.adapter=adapters/tags", "--data.path=tags.jsonl", "--output=out.jsonl") == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["tags"] for row in found] == [line["tags"] for line in lines]
    for row in found:
        assert row["label"] == [name for name, value in row["probability"].items() if value > 0.5]
        assert list(row["probability"]) == about.labels
    # A merged model says of itself what the scores are, for those who have no gpart.
    assert main(["merge", str(tiny_encoder), "adapters/tags", "merged"]) == 0
    config = json.loads(Path("merged/config.json").read_text())
    assert (config["problem_type"], config["id2label"]["1"]) == ("multi_label_classification", "north")


def test_mistakes_are_one_line_before_anything_is_loaded(gpart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "tickets.csv"
    for more, said in (
        ([], "path is the file, folder or data set with your texts, as in --data.path tickets.csv"),
        ([f"--data.path={path}", "--model.num_labels=2"], "the model's num_labels is 2, and the data's is 3"),
        ([f"--data.path={path}", "--model.labels=[billing,delivery]"], "'technical', which is none of the 2 classes"),
        ([f"--data.path={path}", "--data.held_out=0.1"], "--data.held_out 0.254"),
        ([f"--data.path={path}", "--data.label=tema"], "has no column 'tema'; it has ['id', 'message', 'team']"),
        (["--data.path=tickets.csv"], "there is no file and no folder 'tickets.csv'"),
    ):
        assert gpart("fit", *more) == 2
        err = capsys.readouterr().err
        assert err.count("gpart: error:") == 1
        assert said in err
    assert not list(Path().rglob("config.yaml"))
    assert gpart("predict", f"--data.path={path}", "--output=out.xls") == 2
    assert "end in .jsonl, .csv, .tsv, .parquet, got 'out.xls'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overlay", "more"), [("linear-probe", ()), ("lora", ("--model.labels=[culture,sport,weather]",))]
)
def test_what_another_method_has_trained_predicts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path, overlay: str, more: tuple[str, ...]
) -> None:
    """A probe's folder says its classes; PEFT's own has no place for them."""
    monkeypatch.chdir(tmp_path)
    words = [
        "--config=text",
        f"--config=methods/{overlay}",
        f"--model.model={tiny_encoder}",
        "--trainer.accelerator=cpu",
    ]
    path = f"--data.path={DATA / 'headlines.jsonl'}"
    short = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--data.max_length=32"]
    assert main(["fit", *words, *short, path, "--method.save_folder=saved"]) == 0
    Path("new.csv").write_text("text\nThe coast is covered in fog\n", encoding="utf-8")
    asked = ["--method.adapter=saved", "--data.path=new.csv", "--output=out.csv", *more]
    assert main(["predict", *words, *asked]) == 0
    (row,) = rows_of("out.csv")
    assert row["label"] in ("culture", "sport", "weather")
