"""``gpart inspect``, ``diff``, ``combine`` and ``project``: what they print, what they write, and their mistakes in one line."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from many_layers import adapted, many
from rich.console import Console
from torch import nn

from gpart import GPartConfig, attach, load_adapter
from gpart.arithmetic import Stored, combine, cosine, distance, norm, norm_by_weight, project, read
from gpart.cli import main
from gpart.cli.adapters import MOST_ROWS, bars_of, by_layer, printable
from gpart.cli.combine import parse_adapter
from gpart.cli.inspect_adapter import files
from gpart.errors import GPartError
from gpart.serialization.folder import write_folder

FILES = Path(__file__).parents[1] / "files"
BASE: dict[str, Any] = {"d": 11, "seed": 5, "target_modules": ["qkv", "square"], "modules_to_save": ["head"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a`` and ``b`` are of one layout and one head, ``c`` has another seed and head, ``d`` other targets."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed, add, changes in (
        ("a", 1, 0.0, {}),
        ("b", 2, 0.0, {"dropout": 0.25}),
        ("c", 3, 1.0, {"seed": 6}),
        ("d", 4, 0.0, {"target_modules": ["square", "turned"]}),
    ):
        adapter = adapted(seed, **{**BASE, **changes})
        with torch.no_grad():
            adapter.model.head.weight.add_(add)
        adapter.save(folder / name)
    return folder


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


# inspect


def test_inspect_prints_what_an_adapter_is(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(["inspect", str(folders / "a")], capsys)
    lines = lines_of(out)
    stored = read(folders / "a")
    assert "projection gpart-v1, seed 5, format 2" in lines
    assert "target_modules qkv square" in lines
    assert "modules_to_save head" in lines
    assert "D 90 in 2 weights" in lines
    assert "d 11 (8.2 weights to each number)" in lines
    assert any(
        line.startswith(f"norm of the update {norm(stored):.6g} (rms {norm(stored) / math.sqrt(90):.3g}")
        for line in lines
    )
    assert "head.weight 3 x 6 float32 72 bytes" in lines
    assert not any(line.startswith(("dropout", "bias", "slices")) for line in lines)  # what is as usual is left out
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("qkv", "square"))}
    for name, value in norm_by_weight(stored).items():
        shown = rows[name.removesuffix(".weight")]
        assert shown[0] == f"{value:.4g}"
        assert shown[1] == f"{value**2 / norm(stored) ** 2:.1%}"
        assert set(shown[2]) <= set("█▏▎▍▌▋▊▉")
    bars = {name: len(shown[2]) for name, shown in rows.items()}
    assert max(bars.values()) == bars[max(norm_by_weight(stored), key=norm_by_weight(stored).get).split(".")[0]] == 24


def test_inspect_prints_json(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads(run(["inspect", str(folders / "b"), "--json"], capsys))
    stored = read(folders / "b")
    assert known["config"] == stored.manifest.config.to_dict()
    assert (known["D"], known["d"], known["name"], known["format"]) == (90, 11, "default", 2)
    assert known["base"] == stored.manifest.base
    assert known["versions"] == stored.manifest.versions
    assert known["update_norm"] == known["theta_norm"] == pytest.approx(norm(stored))
    assert math.hypot(*known["update_norm_by_weight"].values()) == pytest.approx(known["update_norm"])
    assert known["weights"] == {"qkv.weight": [9, 6], "square.weight": [6, 6]}
    assert known["saved"]["head.bias"] == {"shape": [3], "dtype": "float32", "bytes": 12}
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert known["files"] == {name: (folders / "b" / name).stat().st_size for name in names}


@pytest.mark.parametrize("version", ["0.1.0", "padding_format_1"])
def test_inspect_reads_checkpoints_and_older_files(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("adapter", "run.ckpt"):
        path = FILES / version / name
        known = json.loads(run(["inspect", str(path), "--json"], capsys))
        assert known["format"] == 1
        assert known["update_norm"] == pytest.approx(norm(read(path)))
        assert "norm of the update" in run(["inspect", str(path)], capsys)
    assert known["files"] == {"run.ckpt": path.stat().st_size}


def test_the_norm_without_isometry_is_not_thetas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapted(d=11, target_modules=["qkv"], isometric=False)
    adapter.save(tmp_path)
    known = json.loads(run(["inspect", str(tmp_path), "--json"], capsys))
    assert known["update_norm"] == pytest.approx(float(adapter.delta("qkv.weight").detach().double().norm()), rel=1e-6)
    assert known["theta_norm"] == pytest.approx(float(adapter.theta.detach().double().norm()))
    assert "isometric False" in lines_of(run(["inspect", str(tmp_path)], capsys))


def test_many_weights_are_shown_by_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(2, 2), "value": nn.Linear(2, 2)}) for _ in range(25))
    adapter = attach(nn.ModuleDict({"layers": layers}), GPartConfig(d=9, target_modules=["query", "value"]))
    adapter.theta.data.normal_()
    adapter.save(tmp_path)
    norms = norm_by_weight(read(tmp_path))
    assert len(norms) > MOST_ROWS
    out = run(["inspect", str(tmp_path)], capsys)
    assert "norm of the update by layer: layers.*" in lines_of(out)
    row = next(line.split() for line in lines_of(out) if line.startswith("24 "))
    assert row[1] == f"{math.hypot(norms['layers.24.query.weight'], norms['layers.24.value.weight']):.4g}"
    every = run(["inspect", str(tmp_path), "--all"], capsys)
    assert "norm of the update by weight: layers.*.weight" in lines_of(every)
    assert sum(".query" in line for line in every.splitlines()) == 25
    assert math.hypot(*by_layer(norms).values()) == pytest.approx(norm(adapter))
    assert "updates by layer: layers.*" in lines_of(run(["diff", str(tmp_path), str(tmp_path)], capsys))
    assert run(["diff", str(tmp_path), str(tmp_path), "--all"], capsys).count(".query") == 25


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("width", [30, 80, 200])
def test_bars_fit_the_terminal(encoding: str, width: int) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    bars = bars_of([0.0, 1.0, 3.0, 4.0], Console(file=stream, width=width), taken=26)
    for each in bars:
        each.encode(encoding)
    assert list(map(len, bars)) == ([0, 0, 0, 0] if width == 30 else [0, 6, 18, 24])


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_a_terminal_without_blocks_gets_plain_characters(
    folders: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, str(folders / "a"), *([str(folders / "d")] if command == "diff" else [])]) == 0
    assert b"####" in stream.buffer.getvalue()


def test_no_command_here_imports_lightning_or_transformers(folders: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from gpart.cli import main
a, b = {str(folders / "a")!r}, {str(folders / "b")!r}
main(["inspect", a]); main(["diff", a, b])
main(["combine", {str(tmp_path / "x")!r}, "--adapter", a + "=1"])
main(["project", a, {str(tmp_path / "y")!r}, "--seed", "1"])
print("imported:", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.rpartition("imported:")[2].split()
    assert "gpart.arithmetic" in imported
    assert not {"lightning", "transformers", "datasets", "peft", "timm", "torchvision"}.intersection(imported)


def test_names_out_of_a_file_cannot_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = Stored.of(adapted(**BASE))
    weights = [["evil\x1b[2J.weight", [9, 6]], *stored.manifest.weights[1:]]
    versions = {"gpart": "\x1b]0;owned\x07"}
    tensors = {**stored.tensors, "head\x1b[31m": torch.zeros(2)}
    write_folder(tmp_path, replace(stored.manifest, weights=weights, versions=versions), tensors)
    for words in (["inspect", str(tmp_path)], ["diff", str(tmp_path), str(tmp_path)]):
        out = run(words, capsys)
        assert "\x1b" not in out
        assert "\x07" not in out
        assert r"evil\x1b[2J" in out
        assert "\x1b" not in run([*words, "--json"], capsys)
    assert printable("encoder.layer ü") == "encoder.layer ü"


def test_what_lies_elsewhere_has_no_size() -> None:
    assert files("memory://run/adapter") == {}


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A checkpoint that holds two adapters, as a Trainer with two callbacks writes it."""
    from lightning.pytorch import LightningModule, Trainer

    from gpart.callbacks import GPartCallback

    class Lit(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = many()

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.net.square(self.net.qkv(batch)[:, :6]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)

    callbacks = [
        GPartCallback(d=5, target_modules=["qkv"], module="net", name="first"),
        GPartCallback(d=7, target_modules=["square"], module="net", name="second"),
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, max_steps=1, callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.fit(Lit(), torch.utils.data.DataLoader(torch.randn(4, 6), batch_size=4))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def test_one_of_several_in_a_checkpoint_is_named(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", str(several)]) == 2
    assert (
        f"holds several adapters, ['first', 'second']: name one of them, as {several}:first" in capsys.readouterr().err
    )
    known = json.loads(run(["inspect", f"{several}:second", "--json"], capsys))
    assert (known["name"], known["d"], list(known["weights"])) == ("second", 7, ["square.weight"])
    assert known["files"] == {"run.ckpt": several.stat().st_size}
    assert "only in B" in run(["diff", f"{several}:second", f"{several}:first"], capsys)
    run(["combine", str(several.parent / "out"), "--adapter", f"{several}:first=2"], capsys)
    assert torch.equal(read(several.parent / "out").theta, 2 * read(several, "first").theta)


# diff


def test_diff_of_one_layout(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = read(folders / "a"), read(folders / "b")
    words = ["diff", a.source, b.source]
    lines = lines_of(run(words, capsys))
    assert "base the same" in lines
    assert "layout the same: thetas can be added up" in lines
    assert f"distance {distance(a, b):.6g}" in lines
    assert f"cosine {cosine(a, b):.6f}" in lines
    assert "dropout 0.0 0.25" in lines
    assert "head.weight equal" in lines
    known = json.loads(run([*words, "--json"], capsys))
    assert known["settings"] == {"dropout": [0.0, 0.25]}
    assert (known["same_base"], known["same_layout"], known["layout"]) == (True, True, [])
    assert known["whole"]["distance"] == pytest.approx(distance(a, b))
    assert known["whole"]["first_norm"] == pytest.approx(norm(a))
    assert known["whole"]["second_norm"] == pytest.approx(norm(b))
    assert math.hypot(*(each["distance"] for each in known["by_weight"].values())) == pytest.approx(distance(a, b))
    assert known["saved"]["head.bias"] == {"only_in": None, "distance": 0.0, "equal": True}


def test_diff_of_other_targets_and_heads(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c, d = read(folders / "c"), read(folders / "d")
    words = ["diff", c.source, d.source]
    lines = lines_of(run(words, capsys))
    assert "seed 6 5" in lines
    assert "target_modules ['qkv', 'square'] ['square', 'turned']" in lines
    known = json.loads(run([*words, "--json"], capsys))
    assert known["weights_only_in_first"] == ["qkv.weight"]
    assert known["weights_only_in_second"] == ["turned.weight"]
    assert set(known["by_weight"]) == {"qkv.weight", "square.weight", "turned.weight"}
    assert known["by_weight"]["qkv.weight"]["second_norm"] == 0
    assert known["whole"]["cosine"] == pytest.approx(cosine(c, d))
    assert known["saved"]["head.weight"]["distance"] == pytest.approx(math.sqrt(18), rel=1e-6)
    row = next(line.split() for line in lines if line.startswith("qkv "))
    assert (row[2], row[4]) == ("-", "-")


def test_diff_of_two_bases_says_so_and_goes_on(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted(9, base_seed=1, **BASE).save(tmp_path)
    known = json.loads(run(["diff", str(folders / "a"), str(tmp_path), "--json"], capsys))
    assert known["same_base"] is False
    assert "have different bases: fingerprints" in known["base_note"]
    assert known["whole"]["distance"] > 0
    assert "not known to be the same" in run(["diff", str(folders / "a"), str(tmp_path)], capsys)


def test_diff_tells_what_only_one_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Stored.of(adapted(**BASE))
    one.save(tmp_path / "one")
    tensors = {**one.tensors, "seen": torch.zeros(2), "head.bias": torch.zeros(4)}
    Stored(one.manifest, tensors).save(tmp_path / "other")
    lines = lines_of(run(["diff", str(tmp_path / "one"), str(tmp_path / "other")], capsys))
    assert "seen only in B" in lines
    assert "head.bias other shapes" in lines
    assert "seen only in A" in lines_of(run(["diff", str(tmp_path / "other"), str(tmp_path / "one")], capsys))


# combine


def test_combine_writes_an_adapter_that_loads(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders / "a", folders / "b"
    out = run(["combine", str(tmp_path / "out"), "--adapter", f"{a}=0.5", "--adapter", f"{b}=-1.0"], capsys)
    expected = 0.5 * read(a).theta.double() - read(b).theta.double()
    assert torch.equal(load_adapter(many(), tmp_path / "out").theta.detach(), expected.float())
    said = "".join(out.split())  # a long path is broken over lines
    assert f"of0.5x{a}(norm" in said
    assert f"-1x{b}(norm" in said
    assert f"normoftheupdate{norm(read(tmp_path / 'out')):.6g}" in said


def test_combine_passes_every_setting_on(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folders / "a", folders / "b"
    settings = [
        "--combination-type",
        "dare_ties",
        "--density",
        "0.5",
        "--seed",
        "3",
        "--majority-sign-method",
        "frequency",
    ]
    words = ["combine", str(tmp_path), "--adapter", f"{a}=2", "--adapter", f"{b}=-1e-1", "--name", "both", *settings]
    known = json.loads(run([*words, "--json"], capsys))
    made = read(tmp_path)
    expected = combine(
        {read(a): 2.0, read(b): -0.1}, "dare_ties", density=0.5, seed=3, majority_sign_method="frequency", name="both"
    )
    assert torch.equal(made.theta, expected.theta)
    assert made.manifest == expected.manifest
    assert known["norm"] == pytest.approx(norm(made))
    assert [(each["adapter"], each["coefficient"]) for each in known["adapters"]] == [(str(a), 2.0), (str(b), -0.1)]


def test_combine_of_other_heads(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = adapted(7, **BASE)
    other.model.head.weight.data.add_(1.0)
    other.save(tmp_path / "other")
    pair = ["--adapter", f"{folders / 'a'}=0.5", "--adapter", f"{tmp_path / 'other'}=0.5"]
    assert main(["combine", str(tmp_path / "x"), *pair]) == 2
    assert "head.weight differ" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    run(["combine", str(tmp_path / "x"), *pair, "--heads", str(tmp_path / "other")], capsys)
    assert torch.equal(read(tmp_path / "x").heads["head.weight"], other.model.head.weight)
    run(["combine", str(tmp_path / "y"), *pair, "--heads", "combine"], capsys)
    before = read(folders / "a").heads["head.weight"]
    assert torch.allclose(read(tmp_path / "y").heads["head.weight"], before + 0.5)
    assert main(["combine", str(tmp_path / "z"), *pair, "--heads", "neither"]) == 2
    assert "--heads must be 'combine' or one of the adapters as it was given" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["combine", "project"])
def test_what_is_there_stays_unless_it_is_forced(
    command: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = str(folders / "a")
    words = (
        [command, a, str(tmp_path), "--seed", "3"]
        if command == "project"
        else [command, str(tmp_path), "--adapter", f"{a}=1"]
    )
    (tmp_path / "notes.txt").write_text("mine")
    assert main(words) == 2
    assert f"{tmp_path} is not empty: give --force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    run([*words, "--force"], capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert norm(read(tmp_path)) > 0
    words[words.index(str(tmp_path))] = str(tmp_path / "notes.txt")
    assert main([*words, "--force"]) == 2
    assert "notes.txt is a file, not a folder" in capsys.readouterr().err


def test_an_empty_folder_and_its_own_folder_can_be_written_to(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["combine", str(tmp_path), "--adapter", f"{folders / 'a'}=1"]
    run(words, capsys)
    before = read(tmp_path).theta
    run(["combine", str(tmp_path), "--adapter", f"{tmp_path}=-2", "--force"], capsys)
    assert torch.equal(read(tmp_path).theta, -2 * before)


def test_a_url_is_written_to_once(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["combine", "memory://arithmetic/out", "--adapter", f"{folders / 'a'}=1"]
    run(words, capsys)
    assert torch.equal(read("memory://arithmetic/out").theta, read(folders / "a").theta)
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "read_as"),
    [("a=0.5", ("a", 0.5)), ("a=-1e-3", ("a", -0.001)), ("x/epoch=3-step=10.ckpt=2", ("x/epoch=3-step=10.ckpt", 2.0))],
)
def test_the_coefficient_stands_last(text: str, read_as: tuple[str, float]) -> None:
    assert parse_adapter(text) == read_as


def test_a_path_that_ends_like_a_coefficient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    with pytest.raises(GPartError, match=r"--adapter lr=0\.1 has no coefficient: give lr=0\.1=1"):
        parse_adapter("lr=0.1")
    assert parse_adapter("lr=0.1=2") == ("lr=0.1", 2.0)


# project


def test_project_writes_the_nearest_and_tells_the_loss(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = read(folders / "a")
    lines = lines_of(run(["project", a.source, str(tmp_path / "out"), "--seed", "9", "--d", "20"], capsys))
    expected = project(a, replace(a.manifest.config, seed=9, d=20))
    made = read(tmp_path / "out")
    assert torch.equal(made.theta, expected.adapter.theta)
    assert made.manifest == expected.adapter.manifest
    assert f"lost {expected.lost:.6g} ({expected.relative:.2%} of the norm)" in lines
    known = json.loads(run(["project", a.source, str(tmp_path / "x"), "--seed", "9", "--d", "20", "--json"], capsys))
    assert known["lost"] == expected.lost
    assert known["kept"] ** 2 + known["lost"] ** 2 == pytest.approx(known["norm"] ** 2)


@pytest.mark.parametrize("name", ["moved.ckpt", "run.ckpt:moved"])
def test_a_folder_may_be_called_like_a_checkpoint(
    name: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / name)
    run(["project", str(folders / "a"), out, "--seed", "3"], capsys)
    assert json.loads(run(["inspect", out, "--json"], capsys))["files"].keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert read(out).theta.numel() == read(folders / "a").theta.numel()


def test_project_like_another(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["project", str(folders / "a"), str(tmp_path), "--like", str(folders / "d")], capsys)
    made, other = read(tmp_path), read(folders / "d")
    assert made.layout == other.layout
    loaded = load_adapter(many(), tmp_path)
    assert loaded.config == other.manifest.config


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect"], "the following arguments are required: ADAPTER"),
        (["inspect", "no/such"], "no adapter at no/such: there is no such folder"),
        (["inspect", "no/such.ckpt"], "no checkpoint at no/such.ckpt"),
        (
            ["inspect", "HERE/a/adapter_model.safetensors"],
            "it is a file; give the folder that holds adapter_config.json",
        ),
        (["inspect", "HERE"], "there is no file adapter_config.json"),
        (["inspect", "HERE/a", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["diff", "HERE/a"], "the following arguments are required: B"),
        (["diff", "HERE/a", "no/such"], "no adapter at no/such"),
        (["combine"], "the following arguments are required: OUT, --adapter"),
        (["combine", "HERE/out", "--adapter", "HERE/a"], "--adapter takes ADAPTER=COEFFICIENT"),
        (["combine", "HERE/out", "--adapter", "=1"], "--adapter takes ADAPTER=COEFFICIENT"),
        (["combine", "HERE/out", "--adapter", "HERE/a=nan"], "must be a finite number, got nan"),
        (["combine", "HERE/out", "--adapter", "HERE/a=much"], "such as runs/a=0.5, got"),
        (["combine", "HERE/out", "--adapter", "HERE/a=1", "--adapter", "HERE/c=1"], "seed is 5 and 6"),
        (["combine", "HERE/out", "--adapter", "HERE/a=1", "--combination-type", "svd"], "invalid choice: 'svd'"),
        (["combine", "HERE/out", "--adapter", "HERE/a=1", "--combination-type", "ties"], "needs density"),
        (["combine", "HERE/out", "--adapter", "HERE/a=1", "--density", "0.5"], "takes no density, got 0.5"),
        (["combine", "HERE/out", "--adapter", "HERE/a=1", "--seed", "0"], "--combination-type linear takes no --seed"),
        (
            ["combine", "HERE/out", "--adapter", "HERE/a=1", "--majority-sign-method", "total"],
            "--combination-type linear takes no --majority-sign-method",
        ),
        (["combine", "HERE/out", "--adapter", "HERE/a=1", "--name", "a.b"], "name consists of letters"),
        (["combine", "", "--adapter", "HERE/a=1"], "OUT must name a folder, got ''"),
        (["project", "HERE/a", " ", "--d", "3"], "OUT must name a folder, got ''"),
        (["project", "HERE/a"], "the following arguments are required: OUT"),
        (["project", "HERE/a", "HERE/out"], "takes --d and --seed, or --like OTHER; got none"),
        (["project", "HERE/a", "HERE/out", "--d", "3", "--like", "HERE/b"], "got --like HERE/b and --d 3"),
        (["project", "HERE/a", "HERE/out", "--d", "91"], "d=91 is more than the 90 weights"),
        (["project", "HERE/a", "HERE/out", "--d", "0"], "d must be a whole number, 1 or more, got 0"),
        (["project", "HERE/a", "HERE/out", "--seed", "-1"], "seed must be a whole number"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.replace("HERE", str(folders)) for word in words]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("gpart: error: ")
    assert said.replace("HERE", str(folders)) in lines[0]
    assert printed.out == ""
    assert not (folders / "out").exists()


def test_a_changed_file_is_refused(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((folders / "a" / name).read_bytes())
    content = bytearray((tmp_path / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    for words in (["inspect", str(tmp_path)], ["combine", str(tmp_path / "x"), "--adapter", f"{tmp_path}=1"]):
        assert main(words) == 2
        assert "was changed or truncated" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "diff", "combine", "project"])
def test_help_explains_each(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: gpart {command}")
    assert "--json" in out
    assert max(map(len, out.splitlines())) <= 120
