"""The command as a user types it, on a tiny model and a small file in the real layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from gpart import load_adapter
from gpart.cli import main
from gpart.cli.configs import CONFIGS, recipes
from gpart.cli.parser import HEADINGS

WORDS = [
    "the",
    "film",
    "is",
    "a",
    "very",
    "good",
    "bad",
    "joy",
    "mess",
    "fine",
    "dull",
    "bright",
    "slow",
    "story",
    "with",
    "no",
    "heart",
    "and",
    "all",
    "soul",
]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A tiny pretrained encoder and 200 scored sentences; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    folder = tmp_path / "model"
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS) + 5, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    lines = [f"{i}\t{2.5 if i % 2 else -1.5}\tthe film is {WORDS[i % 17]} number {i}" for i in range(200)]
    (tmp_path / "data.tsv").write_text("\n".join(lines) + "\n")
    return {"model": str(folder), "path": str(tmp_path / "data.tsv")}


def words(tiny: dict[str, str], command: str, *more: str) -> list[str]:
    return [
        command,
        "--config=quickstart",
        f"--model.model={tiny['model']}",
        f"--data.model={tiny['model']}",
        f"--data.path={tiny['path']}",
        "--data.train_size=64",
        "--method.d=50",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *more,
    ]


def test_fit_test_predict_and_the_adapter_folder(tiny: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tiny, "fit")) == 0
    out = capsys.readouterr().out
    assert "d, length of theta" in out
    assert "val/accuracy" in out
    folder = Path("adapters/quickstart")
    assert folder.is_dir()
    checkpoint = next(Path("runs").rglob("last.ckpt"))

    assert main(words(tiny, "test", f"--ckpt_path={checkpoint}")) == 0
    assert "test/accuracy" in capsys.readouterr().out

    sentences = ["the film is good", "a dull mess"]
    asked = words(tiny, "predict", f"--method.adapter={folder}", f"--data.sentences={json.dumps(sentences)}")
    assert main(asked) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["text"] for row in rows] == sentences

    # The folder gives the same answer in plain Transformers, without Lightning.
    model = BertForSequenceClassification.from_pretrained(tiny["model"], num_labels=2)
    load_adapter(model, folder)
    tokens = BertTokenizer.from_pretrained(tiny["model"])(sentences, return_tensors="pt", padding=True)
    with torch.no_grad():
        labels = model.eval()(**tokens).logits.argmax(-1).tolist()
    assert [row["label"] for row in rows] == [["negative", "positive"][label] for label in labels]


def test_fit_goes_on_from_a_checkpoint(tiny: dict[str, str]) -> None:
    assert main(words(tiny, "fit", "--trainer.max_epochs=1")) == 0
    checkpoint = next(Path("runs").rglob("last.ckpt"))
    assert main(words(tiny, "fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2")) == 0
    newest = max(Path("runs").rglob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest, weights_only=True)["epoch"] == 1


def test_an_overlay_replaces_the_method_and_nothing_else(
    tiny: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = [word for word in words(tiny, "fit") if not word.startswith("--method")]
    overlaid = [*base[:2], "--config=methods/linear-probe", *base[2:]]

    def printed(asked: list[str]) -> dict[str, object]:
        with pytest.raises(SystemExit) as stop:
            main([*asked, "--print_config"])
        assert stop.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    plain, probe = printed(base), printed(overlaid)
    assert probe.pop("method")["class_path"].endswith("LinearProbe")
    assert plain.pop("method")["class_path"].endswith("GPartCallback")
    assert plain == probe
    assert main(overlaid) == 0
    out = capsys.readouterr().out
    assert "LinearProbe" in out
    assert "d, length of theta" not in out


def test_without_a_method_everything_is_trained(tiny: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    del recipe["method"]
    Path("full.yaml").write_text(yaml.safe_dump(recipe))
    asked = [word for word in words(tiny, "fit", "--trainer.max_epochs=1") if not word.startswith("--method")]
    asked[1] = "--config=full.yaml"
    assert main(asked) == 0
    state = torch.load(next(Path("runs").rglob("last.ckpt")), weights_only=True)["state_dict"]
    assert "model.bert.embeddings.word_embeddings.weight" in state


def test_configs_lists_and_copies(tiny: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert recipes()
    assert all(name in listed for name in recipes())
    assert main(["configs", "--copy", "quickstart"]) == 0
    assert Path("quickstart.yaml").read_bytes() == (CONFIGS / "quickstart.yaml").read_bytes()
    assert main(["configs", "--copy", "quickstart"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--config=nosuch"], "no config file and no recipe 'nosuch'"),
        (["--config=quickstrat"], "quickstart"),
        (["--config=bad.yaml"], "Problems parsing config"),
        (["--method=NoSuchMethod"], "there is no class 'NoSuchMethod'"),
        (["--model=NoSuchModel"], "there is no class 'NoSuchModel'"),
        (["--method.d=0"], "d must be a whole number, 1 or more, got 0"),
        (["--method.d=99999999"], "d=99999999 is more than the"),
        (["--method.target_modules=[nothing]"], "'nothing' matches no module"),
        (["--method.nosuch=1"], "nosuch"),
        (["--method.nosuch=1"], "error: method.nosuch: gpart.callbacks.GPartCallback has no such setting"),
        (["--data.train_size=64x"], "error: data.train_size=64x: expected int or null"),
        (["--model.lr=fast"], "error: model.lr=fast: expected float"),
        (["--model.schedule=a b"], "error: model.schedule=a b: expected one of 'linear', 'cosine', 'constant'"),
        (["--trainer.max_epochs=many"], "error: trainer.max_epochs=many: expected int or null"),
        (["--trainer.max_epochs=many"], "max_epochs"),
        (["--data.train_size=100000"], "100000"),
        (["--data.path=nosuch.tsv"], "nosuch.tsv"),
        (["--ckpt_path=nosuch.ckpt"], "no checkpoint at nosuch.ckpt"),
        (["--ckpt_path=bad.yaml"], "cannot be read as a checkpoint"),
        (["--method.adapter=nosuch"], "no adapter at nosuch"),
        (["--model.labels=[a, b, c]"], "the model's num_labels is 3, and the data's is 2"),
        (["--trainer.accelerator=cpuu"], "trainer: You selected an invalid accelerator name"),
        (["--trainer.devices=many"], "trainer: `devices` selected with `CPUAccelerator` should be an int"),
        (["--trainer.max_epochs=-5"], "must be a non-negative integer or -1. You passed in -5"),
        (["--trainer=no-text.yaml"], "'utf-8' codec can't decode"),
        # jsonargparse wraps what is raised in a list
        (["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_top_k=-7"], "save_top_k=-7"),
    ],
)
def test_mistakes_are_one_line(
    tiny: dict[str, str], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    Path("bad.yaml").write_text("trainer: [1\n")
    Path("no-text.yaml").write_bytes(b"\xff\xfe")
    code = main(words(tiny, "fit", *more))
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("gpart: error:")]
    assert code == 2, err[-2000:]
    assert len(lines) == 1
    assert said in lines[0], lines[0]


HOOK = """
from lightning.pytorch import Callback

from gpart.errors import GPartError


class Faulty(Callback):
    def on_fit_start(self, trainer, pl_module):
        list(zip([1], [], strict=True))


class Strict(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise GPartError("the model has no such layer")
"""


def test_in_the_middle_of_a_run_the_type_decides_too(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hooks.py").write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="zip") as caught:
        main(words(tiny, "fit", "--trainer.callbacks=hooks.Faulty"))
    assert type(caught.value) is ValueError
    assert "gpart: error:" not in capsys.readouterr().err
    assert main(words(tiny, "fit", "--trainer.callbacks=hooks.Strict")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "gpart: error: the model has no such layer"


def test_the_process_shows_no_trace(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "gpart.cli", "fit", "--config", "quickstart", "--method.d", "0"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "gpart: error: d must be a whole number, 1 or more, got 0"


def test_help_of_a_training_command_is_this_packages_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help-all"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: gpart predict --config RECIPE [--SETTING=VALUE ...]"
    assert "'gpart configs'" in " ".join(" ".join(lines[2:10]).split())
    assert {f"{heading}:" for heading in HEADINGS.values()} <= set(lines)
