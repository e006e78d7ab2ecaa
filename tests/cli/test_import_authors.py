"""``gpart import``: the authors' folder onto a real base folder, and ours is checked from then on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from authors_folders import write_theirs
from safetensors.torch import load_file

from gpart import load_adapter
from gpart.cli.main import main
from gpart.serialization.authors import export_authors

HEAD = {"classifier.weight": torch.arange(24.0).view(3, 8) / 16, "classifier.bias": torch.tensor([1.0, 2.0, 3.0])}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare encoder, as most bases on the hub are: its classifier is drawn when it is loaded."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    folder = tmp_path_factory.mktemp("base")
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def run(*words: object) -> int:
    return main(["import", *map(str, words)])


def test_it_becomes_one_of_ours_and_theirs_again(base, tmp_path, capsys):
    theirs, ours, back = write_theirs(tmp_path / "theirs", HEAD), tmp_path / "ours", tmp_path / "back"
    assert run(theirs, ours, "--base", base) == 0
    printed = capsys.readouterr()
    assert printed.out == f"written: {ours} (authors-stateless, d = 23 on D = 256 weights)\n"
    assert printed.err.count("\n") == 1
    assert "gpart: warning: " in printed.err
    assert "D = 256 weights, from bert.encoder.layer.0" in printed.err
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    adapter = load_adapter(model, ours)
    assert model.classifier.weight.equal(HEAD["classifier.weight"])
    assert adapter.theta.equal(torch.linspace(-1, 1, 23))
    export_authors(ours, back)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (theirs, back))
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


def test_json_and_a_folder_without_backend(base, tmp_path, capsys):
    theirs = write_theirs(tmp_path / "theirs", HEAD, without=("assignment_backend",))
    assert run(theirs, tmp_path / "ours", "--base", base) == 2
    assert "say --backend 'materialized' if" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
    assert run(theirs, tmp_path / "ours", "--base", base, "--backend", "materialized", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["projection"], told["d"], told["D"], told["weights"]) == ("authors-materialized", 23, 256, 4)


def test_an_adapter_that_is_there_is_kept_without_force(base, tmp_path, capsys):
    theirs = write_theirs(tmp_path / "theirs", HEAD)
    for words, status in ((("--base", base), 0), (("--base", base), 2), (("--base", base, "--force"), 0)):
        assert run(theirs, tmp_path / "ours", *words) == status
    assert "holds adapter_config.json already: --force writes over it" in capsys.readouterr().err


def test_it_looks_where_it_writes(base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs, model = write_theirs(tmp_path / "theirs", HEAD), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for out, place in ((f"file://{tmp_path}/ours", tmp_path / "ours"), (model, model / "gpart")):
        assert run(theirs, out, "--base", base) == 0
        assert run(theirs, out, "--base", base) == 2
        assert f"{place} holds adapter_config.json already" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    for out in (theirs, "./theirs", f"file://{theirs}"):
        assert run(theirs, out, "--base", base, "--force") == 2
        assert "which is read: give another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    assert run(theirs, "", "--base", base) == 2
    assert "OUT must name a folder, got ''" in capsys.readouterr().err


def test_the_base_is_the_one_that_their_folder_names(base, tmp_path):
    theirs = write_theirs(tmp_path / "theirs", HEAD, base_model_name_or_path=str(base))
    assert run(theirs, tmp_path / "ours") == 0
    export_authors(tmp_path / "ours", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert back["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    ("settings", "words", "told"),
    [
        ({}, ("--base", "/nothing/here"), "there is no model '/nothing/here'"),
        ({}, ("--base", "BASE", "--model-class", "NoSuchModel"), "--model-class NoSuchModel: Transformers"),
        ({"target_modules": ["wrong"]}, ("--base", "BASE"), "'wrong' matches no module"),
        ({"projection_type": "fastfood"}, ("--base", "BASE"), "projection_type='fastfood'"),
        ({"base_model_name_or_path": None}, (), "its base_model_name_or_path is None: say --base"),
        ({"base_model_name_or_path": "python:os:abort"}, (), "is 'python:os:abort': say --base"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(base, tmp_path, capsys, settings, words, told):
    theirs = write_theirs(tmp_path / "theirs", HEAD, **settings)
    assert run(theirs, tmp_path / "ours", *(base if word == "BASE" else word for word in words)) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "ours").exists()
