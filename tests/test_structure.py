"""The rooms: who may import whom, what an import costs, what the wheel holds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

import gpart

ROOT = Path(gpart.__file__).resolve().parent.parent
PACKAGE = ROOT / "gpart"

HEAVY = {"lightning", "transformers", "timm", "peft", "datasets", "torchvision", "torchmetrics"}
FORBIDDEN = {
    "": HEAVY,
    "lightning_modules": {"gpart", "peft"},
    "datamodules": {"peft"},
}
# The one exception: it fetches files and is no part of the adapter.
ALLOWED = {"gpart.assets.fetching", "gpart.errors"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room_files(room: str) -> list[Path]:
    return sorted(PACKAGE.glob("*.py") if room == "" else (PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = room_files(room)
    assert files
    for path in files:
        own = {f"gpart.{room}"} if room else set()
        for name in imports(path) - ALLOWED:
            if any(name == mine or name.startswith(f"{mine}.") for mine in own):
                continue
            assert name.split(".")[0] not in FORBIDDEN[room], f"{path} imports {name}"


def test_the_method_knows_no_room() -> None:
    for path in room_files(""):
        for room in ("callbacks", "datamodules", "lightning_modules", "studies", "cli"):
            assert not any(name.startswith(f"gpart.{room}") for name in imports(path)), path


def test_the_studies_know_no_command() -> None:
    files = room_files("studies")
    assert files
    for path in files:
        assert not any(name.startswith("gpart.cli") for name in imports(path)), path


def test_import_gpart_is_light() -> None:
    code = (
        "import sys, time, json, torch, safetensors.torch; before = set(sys.modules); t = time.perf_counter();"
        "import gpart; print(json.dumps([time.perf_counter() - t, sorted({m.split('.')[0] for m in sys.modules}),"
        "sorted(set(sys.modules) - before)]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    _seconds, modules, new = json.loads(out)
    assert not HEAVY & set(modules)
    assert "filelock" not in modules
    assert not [name for name in new if name.startswith("torch._dynamo")]  # the compiler, ten times gpart's own time


def test_the_top_folders_are_links() -> None:
    for room in ("callbacks", "datamodules", "lightning_modules", "configs"):
        assert (ROOT / room).resolve() == PACKAGE / room


def test_every_dependency_and_ignored_rule_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    lines = text.splitlines()
    extras = project["project"]["optional-dependencies"]
    needed = [*project["project"]["dependencies"], *extras["vision"], *extras["math"]]
    for wanted in [*needed, *project["tool"]["pytest"]["ini_options"]["filterwarnings"]]:
        line = next(line for line in lines if f'"{wanted}"' in line)
        assert "#" in line.split('",', 1)[1], line


def test_modules_are_small() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert sum(size > 250 for size in sizes.values()) <= len(sizes) // 5, sizes


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_no_links(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", str(tmp_path), str(ROOT)], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {
        "gpart/configs/quickstart.yaml",
        "gpart/py.typed",
        "gpart/callbacks/gpart_callback.py",
        "gpart/native.c",
    } <= set(names)
    assert "gpart/architectures/google/gemma-7b.json" in names
    assert not [name for name in names if name.split("/")[0] in ("callbacks", "configs", "tests")]
