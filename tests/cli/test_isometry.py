"""``gpart isometry`` on an architecture and on runs of the command, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from gpart.cli import isometry, main
from gpart.studies.isometry.subjects import find_runs

WORDS = ["the", "film", "is", "good", "bad", "number"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder, D = 512; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    folder = tmp_path / "model"
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=11, max_position_embeddings=16, **SIZES)).save_pretrained(folder)
    return folder


def fit(model: Path, run: str, *more: str) -> None:
    lines = [f"{i}\t{2.5 if i % 2 else -1.5}\tthe film is {WORDS[3 + i % 2]} number {i}" for i in range(60)]
    Path("data.tsv").write_text("\n".join(lines) + "\n")
    words = ["--config=quickstart", *more, f"--model.model={model}", f"--data.model={model}", "--data.path=data.tsv"]
    quiet = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary", "logger")]
    steps = ["--data.train_size=16", "--data.batch_size=4", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    keep = ["--trainer.callbacks+=SnapshotWriter", "--trainer.callbacks.every_n_steps=2"]
    assert main(["fit", *words, *quiet, *steps, f"--trainer.default_root_dir={run}", *keep]) == 0


def test_an_architecture(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["isometry", str(tiny), "--d", "20", "--lora-r", "2", "--vera-r", "5", "--fourierft-n", "10"]
    assert main([*asked, "--output", "out"]) == 0
    shown = capsys.readouterr().out
    assert "written: out/isometry.json, out/isometry.md, out/isometry.png" in " ".join(shown.split())
    rows = {row["name"]: row for row in json.loads(Path("out/isometry.json").read_text())["rows"]}
    assert list(rows)[:4] == ["gpart", "gpart-non-isometric", "gpart-hash", "gpart-fastfood"]
    assert list(rows)[4:] == ["lora", "vera", "fourierft", "unilora"]
    assert {name: row["trained"] for name, row in rows.items()} == {
        **dict.fromkeys(["gpart", "gpart-non-isometric", "gpart-hash", "gpart-fastfood", "unilora", "fourierft"], 20),
        "lora": 2 * 2 * 32,
        "vera": 2 * (5 + 16),
    }
    for row in rows.values():
        (end,) = row["ends"]
        assert end["stretch"] == pytest.approx(end["rms"], rel=0.6)
        assert len(end["quantiles"]) == 201
    assert rows["gpart"]["ends"][0]["condition"] == 1
    assert rows["gpart-non-isometric"]["ends"][0]["rms"] == pytest.approx((512 / 20) ** 0.5)
    assert rows["lora"]["ends"][0]["zeros"] == 0.5
    assert [rows[name]["decay_degree"] for name in ("gpart-fastfood", "fourierft", "lora", "vera", "unilora")] == [
        pytest.approx(degree) for degree in (1, 1, 2, 2, 2)
    ]
    assert Path("out/isometry.png").read_bytes().startswith(b"\x89PNG")
    table = Path("out/isometry.md").read_text()
    assert "| lora | 0 | 50.0 % |" in table
    assert "gpart isometry" in table

    assert main([*asked, "--method", "gpart", "--output", "out"]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert main([*asked, "--method", "gpart", "lora", "--output", "out", "--overwrite"]) == 0
    assert len(json.loads(Path("out/isometry.json").read_text())["rows"]) == 2


def diverged(run: str, copy: str) -> None:
    """A copy of a run of LoRA whose end is NaN."""
    shutil.copytree(run, copy)
    last = max(Path(copy).rglob("snapshots/*.ckpt"), key=lambda file: torch.load(file)["global_step"])
    content = torch.load(last)
    for key, value in content["state_dict"].items():
        if "lora_A" in key:
            value.fill_(torch.nan)
    torch.save(content, last)


@pytest.mark.slow  # it trains two runs
def test_runs(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tiny, "runs/ours", "--method.d=20")
    fit(tiny, "runs/lora", "--config=methods/lora", "--method.settings={r: 2, lora_alpha: 4}", "--model.weight_decay=0")
    fit(tiny, "runs/probe", "--config=methods/linear-probe")
    fit(tiny, "runs/full", "--config=methods/full-fine-tuning")
    diverged("runs/lora", "runs/nan")
    assert main(["isometry", "runs/probe", "runs/full"]) == 2
    assert "none of ['runs/probe', 'runs/full'] has an adapter of" in capsys.readouterr().err
    assert main(["isometry", "runs/full"]) == 2
    assert "training weights themselves is an isometry by itself" in capsys.readouterr().err
    assert main(["isometry", "runs/nan"]) == 2
    assert "error: nan: at step 4 what is trained is not finite" in capsys.readouterr().err
    assert main(["isometry", "runs", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert "left out, as they have no adapter: full, probe" in printed
    assert "left out, as they have diverged: nan" in printed
    assert "along the run" in printed
    rows = {row["name"]: row for row in json.loads(Path("out/isometry.json").read_text())["rows"]}
    assert list(rows) == ["lora", "ours"]
    ours, lora = rows["ours"], rows["lora"]
    assert (ours["method"], ours["training"]) == ("gpart", {"lr": 0.01, "weight_decay": 0.01})
    assert lora["training"]["weight_decay"] == 0
    assert [one["step"] for one in ours["path"]] == [0, 2, 4]
    assert [one["ratio"] for one in ours["path"]] == [None, pytest.approx(1), pytest.approx(1)]
    assert ours["path"][2]["base"] > 0
    assert [end["step"] for end in lora["ends"]] == [0, 4]
    assert [end["zeros"] for end in lora["ends"]] == [0.5, pytest.approx(2 * 2 / (2 * 32))]

    # In a process of its own, where no module of a run's class has been imported.
    words = [sys.executable, "-m", "gpart.cli", "isometry", "runs/ours", "runs/lora"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "runs/ours" in done.stdout
    assert "MISSING" not in done.stdout + done.stderr
    assert main(["isometry", "runs/ours", "--method", "lora", "--d", "5"]) == 2
    assert "leave ['lora', 'd'] out" in capsys.readouterr().err
    assert main(["isometry", "runs/ours", str(tiny)]) == 2
    assert "have no checkpoints below them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (("last.ckpt", "checkpoints/best.ckpt"), ["checkpoints", "."]),
        (
            ("a/checkpoints/x.ckpt", "a/lightning_logs/checkpoints/y.ckpt", "b/c/checkpoints/z.ckpt"),
            ["a/checkpoints", "a/lightning_logs/checkpoints", "b/c/checkpoints"],
        ),
        (("a/checkpoints/x.ckpt", "b/checkpoints/z.ckpt"), ["a", "b"]),
    ],
)
def test_every_run_has_a_label_of_its_own(tmp_path: Path, files: tuple[str, ...], labels: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = find_runs(tmp_path)
    assert sorted(found) == sorted(labels)
    assert {one for run in found.values() for one in run} == {tmp_path / file for file in files}


def test_a_checkpoint_of_no_trainer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    assert main(["isometry", str(tmp_path)]) == 2
    assert "x.ckpt is no checkpoint of a Lightning Trainer" in capsys.readouterr().err


def test_two_runs_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a/x").mkdir(parents=True)
    found = {"a": {"x": [Path("a/logs/x/1.ckpt")], "y": [Path("a/y/2.ckpt")]}, "x": {"x": [Path("a/x/3.ckpt")]}}
    monkeypatch.setattr(isometry, "find_runs", lambda folder: found[folder.name])
    assert main(["isometry", "a", "a/x"]) == 2
    assert "a/logs/x and a/x would both be called 'a/x'" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        ([str(tiny), "--method", "lroa"], "there is no method 'lroa'; there are gpart, gpart-non-isometric,"),
        ([str(tiny), "--d", "600"], "600"),
        ([str(tiny), "--steps", "1"], "steps must be 2 or more, got 1"),
    ):
        assert main(["isometry", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert told in said


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["isometry", "--help"])
    assert "gpart isometry runs/quickstart --output isometry" in capsys.readouterr().out
