"""The examples, as a user starts them: real processes in an empty folder, and what they print and write."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KEY = "gpart.default.theta"


def started(script: Path | str, *words: object, folder: Path) -> str:
    """What a script prints; its warnings and errors are the failure's text."""
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, words)],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Fabric's second process goes with the first
    )
    try:
        printed, errors = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, f"{printed}\n{errors[-4000:]}"
    return printed


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    """The numbers in the one line that fits; ``#`` in the pattern stands for one."""
    found = re.findall(re.escape(pattern).replace(r"\#", r"([-+.e\d]*\d)"), text)
    assert len(found) == 1, f"{pattern!r} is {len(found)} times in:\n{text}"
    return tuple(map(float, found[0] if isinstance(found[0], tuple) else found))


def theta(folder: Path) -> torch.Tensor:
    return load_file(folder / "adapter_model.safetensors")[KEY]


def test_every_example_is_in_the_readme_and_here() -> None:
    there = {path.stem for path in EXAMPLES.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "runs",
        "__pycache__",
    }
    table = re.findall(r"^\| \[(\w+)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    tests = Path(__file__).read_text()
    assert there == set(table)
    # Files for the recipes, which test_own_files.py and test_own_questions.py hold, and what test_notebooks.py executes.
    for name in there - {"data", "notebooks"}:
        assert f"def test_{name}" in tests


@pytest.mark.slow  # it runs an example as a process
def test_your_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLES / "your_project", project, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    lines = [
        line for path in project.rglob("*.py") if path.name != "load.py" for line in path.open() if "gpart" in line
    ]
    assert not [line for line in lines if "import" in line]  # the project knows nothing of gpart but
    assert (project / "adapt.yaml").read_text().count("gpart") == 1  # one line

    started("prepare.py", folder=project)
    base = torch.load(project / "runs/base.pt", weights_only=True)
    printed = started("main.py", "fit", "--config", "adapt.yaml", folder=project)
    assert re.search(r"d, length of theta\s*│\s*500", printed)
    checkpoint = torch.load(project / "runs/checkpoints/last.ckpt", weights_only=True)
    prefix = "network."  # Lightning's own readers find a note beside these
    values = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if prefix in name}
    assert values.keys() == {KEY, "head.weight", "head.bias"}
    assert torch.equal(values[KEY], theta(project / "runs/adapters/mill"))
    assert values[KEY].count_nonzero() == 500
    assert not torch.equal(values["head.weight"], base["head.weight"])

    words = ["--config", "adapt.yaml", "--ckpt_path", "runs/checkpoints/last.ckpt"]
    printed = started("main.py", "test", *words, folder=project)
    (accuracy,) = map(float, re.findall(r"test/accuracy\s*│\s*([.\d]+)", printed))
    with (project / "runs/mistakes.csv").open(newline="") as file:
        mistakes = list(csv.DictReader(file))
    assert len(mistakes) == round(90 * (1 - accuracy))  # the project's own callback has seen the adapted network
    assert all(Path(row["file"]).parent.name == row["is"] != row["taken for"] for row in mistakes)

    printed = started("load.py", folder=project)
    before, after = numbers("mill: # by the base, # by GPartAdapter('default', d=500, D=8424, weights=2)", printed)
    assert after == pytest.approx(accuracy, abs=1e-4)  # Lightning's checkpoint and the folder are one adapter
    assert after > before + 0.05
    assert "the same to the bit without the adapter: True" in printed


def fabric(name: str, *words: object, folder: Path) -> tuple[str, torch.Tensor]:
    """What the example prints, and the theta that it leaves."""
    printed = started(EXAMPLES / "fabric.py", "--epochs", 2, "--out", name, *words, folder=folder)
    assert "the same logits to the bit: True" in printed
    return printed, theta(folder / name / "adapter")


@pytest.mark.slow  # it runs an example as a process
def test_fabric(tmp_path: Path) -> None:
    printed, trained = fabric("one", folder=tmp_path)
    accuracies = [float(one) for one in re.findall(r"test accuracy ([.\d]+)", printed)]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.5
    saved = torch.load(tmp_path / "one/last.ckpt", weights_only=True)
    assert saved["epoch"] == 2
    assert saved["model"].keys() == {KEY, "head.weight", "head.bias"}
    assert torch.equal(saved["model"][KEY], trained)


@pytest.mark.slow
def test_fabric_on_two_devices_and_resumed(tmp_path: Path) -> None:
    _, one = fabric("one", folder=tmp_path)
    printed, two = fabric("two", "--devices", 2, folder=tmp_path)
    assert "on 2 device(s)" in printed
    assert torch.allclose(two, one, atol=1e-4)
    _, sums = fabric("sums", "--batch-size", 8, "--accumulate", 2, folder=tmp_path)
    assert torch.allclose(sums, one, atol=1e-4)  # two small batches are one
    _, half = fabric("half", "--epochs", 1, folder=tmp_path)
    _, rest = fabric("rest", "--resume", "half/last.ckpt", folder=tmp_path)
    assert not torch.equal(half, one)
    assert torch.equal(rest, one)


@pytest.mark.slow  # it runs an example as a process
def test_transformers_loop(tmp_path: Path) -> None:
    printed = started(EXAMPLES / "transformers_loop.py", folder=tmp_path)
    out = tmp_path / "runs/transformers"
    (before,) = numbers("before: accuracy #", printed)
    after, length = numbers("after: accuracy #, |theta| = #", printed)
    assert after > max(before, 0.9)
    assert float(theta(out / "adapter").norm()) == pytest.approx(length, abs=1e-4)
    assert numbers("loaded: accuracy #, the same logits to the bit: True", printed) == (after,)
    assert numbers("whose logits are at most # away", printed)[0] < 1e-5
    assert not [name for name in load_file(out / "merged/model.safetensors") if "gpart" in name]
    (last,) = (out / "checkpoints").glob("checkpoint-*/adapter")
    assert torch.equal(theta(last), theta(out / "adapter"))


@pytest.mark.slow  # it runs an example as a process
def test_personal(tmp_path: Path) -> None:
    printed = started(EXAMPLES / "personal.py", folder=tmp_path)
    folders = tmp_path / "runs/personal/adapters"
    thetas = {path.name: load_file(path / "adapter_model.safetensors") for path in folders.iterdir()}
    assert len(thetas) == 101
    vectors = {name: tensors["gpart.together.theta" if name == "together" else KEY] for name, tensors in thetas.items()}
    assert len({tuple(vector.tolist()) for vector in vectors.values()}) == 101
    half = vectors["user-1"].double() / 2 + vectors["user-2"].double() / 2
    assert torch.equal(vectors["together"], half.float())
    total, largest = numbers("100 adapters of d = 32 on D = 1440: # bytes, # at most each", printed)
    assert total <= 100 * largest < 100 * 2048
    assert "served as they were trained, to the bit: True" in printed
    base, own, others = numbers("mean squared error: base #, own #, somebody else's #", printed)
    assert own < 0.7 * base < base < others
    better = numbers("own adapter better than the base for #, than others' on average for #", printed)
    assert min(better) >= 90
    both, *alone = numbers("user-1 and user-2: # by both added up, # and # by one of them", printed)
    assert both < min(alone)
    assert numbers("one batch of 8 users: at most # away from each alone", printed)[0] < 1e-5


@pytest.mark.slow  # it runs an example as a process
def test_from_peft(tmp_path: Path) -> None:
    printed = started(EXAMPLES / "from_peft.py", folder=tmp_path)
    rows: dict[str, Any] = {}
    for line in printed.splitlines():
        if fits := re.fullmatch(r"(.*?)\s+PEFT: (.*?)\s+GPart: (.*)", line):
            rows[fits[1]] = (fits[2], fits[3])
    exact = ["at the start", "loaded", "merged, and unmerged", "unmerged, and the base", "merged and unloaded"]
    for step in [*exact, "taken off, and the base", "swapped"]:
        assert rows[step][1] == "equal to the bit", step
    for step in ("at the start", "loaded", "disabled, and the base", "swapped"):
        assert rows[step][0] == "equal to the bit", step
    assert rows["disabled, and the base"][1].endswith("none active: equal to the bit")
    assert rows["taken off, and the base"][0].endswith("away")  # as from_peft.md says: unload() leaves the head
    assert rows["numbers, the head's too"][1] == f"{512 + 2 * 32 + 2} = 512 + {2 * 32 + 2}"
    assert rows["active after adding"] == ("['first']", "['second']")
    assert rows["what is trained"] == ("only the second", "only the second")
    (linear, cat), (its,) = (re.findall(r"(\S+) at", side) for side in rows["added up, relative error"])
    assert float(linear) > 0.1
    assert max(float(cat), float(its)) < 1e-6
    assert rows["or both active"] == ("['first', 'second']", "and the sum: equal to the bit")
    assert rows["left"] == ("['first', 'second']", "['first', 'second']")
    assert rows["mixed batch, row 1"] == ("as alone: True", "as alone: True")


def test_from_peft_runs_every_call_of_its_table() -> None:
    table = [line for line in (EXAMPLES / "from_peft.md").read_text().splitlines() if line.startswith("| ")]
    calls = {
        call for line in table[2:-1] for code in re.findall(r"`([^`]+)`", line) for call in re.findall(r"(\w+)\(", code)
    }
    script = (EXAMPLES / "from_peft.py").read_text()
    assert len(calls) > 30
    assert not {call for call in calls - {"peft_model"} if f"{call}(" not in script}
