"""The rooms: who may import whom, what an import costs, what the wheel holds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import gpart

ROOT = Path(gpart.__file__).resolve().parent.parent
PACKAGE = ROOT / "gpart"
LINKED = ("callbacks", "datamodules", "lightning_modules", "configs")

METHOD = {"config", "heads", "partition", "ops", "injection", "materialize", "serialization", "adapter", "adapters"}
METHOD |= {"loading", "arithmetic", "projections"}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "config": {"errors"},
    "heads": {"errors"},
    "partition": {"errors"},
    "projections": {"partition", "errors"},
    "ops": {"partition", "errors"},
    "injection": {"config", "heads", "errors"},
    "materialize": {"ops", "injection", "config", "projections", "partition", "errors"},
    "serialization": {"config", "projections", "errors", "version"},
    "adapter": {"materialize", "ops", "injection", "serialization", "config", "errors", "version"},
    "adapters": {"adapter", "materialize", "injection", "errors"},
    "bases": {"lightning_modules", "assets", "injection", "serialization", "errors"},
    "loading": {"adapter", "materialize", "injection", "serialization", "bases", "config", "errors"},
    "arithmetic": {
        *(
            "adapter",
            "materialize",
            "ops",
            "injection",
            "serialization",
            "config",
            "projections",
            "partition",
            "errors",
        ),
        "version",
    },
    "face": {"adapter", "adapters", "loading", "ops", "config", "partition", "errors", "version"},
    "assets": {"errors"},
    "packaged": {"assets"},
    "lightning_modules": {"assets", "heads", "errors"},
    "datamodules": {"assets", "errors"},
    "callbacks": {
        "adapter",
        "adapters",
        "materialize",
        "loading",
        "injection",
        "serialization",
        "config",
        "errors",
        "version",
    },
    "serving": METHOD | {"datamodules", "errors", "version"},
    "studies": METHOD
    | {"face", "bases", "callbacks", "lightning_modules", "datamodules", "assets", "errors", "version"},
    "cli": METHOD
    | {
        "face",
        "bases",
        "callbacks",
        "lightning_modules",
        "datamodules",
        "assets",
        "studies",
        "serving",
        "errors",
        "version",
    },
}
"""Every room, and the rooms that it may import; ``face`` is ``gpart/__init__.py``."""

HEAVY = {"lightning", "transformers", "timm", "peft", "datasets", "torchvision", "torchmetrics"}
LIGHT = {"torch", "safetensors", "triton", "fsspec"}  # the last two come with torch
"""What the method may import beside the standard library; Triton where torch brings it."""

ASKED_FOR = {"gpart.serialization.hub": {"huggingface_hub"}}
"""What a module of the method may import besides, in its functions alone: whoever names an adapter on the hub needs it."""

ELSEWHERE = {"lightning_modules": {"peft"}, "datamodules": {"peft"}}
"""Libraries that a room must not know."""


def room_of(module: str) -> str:
    """The room of ``gpart.x.y``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in MAY_IMPORT) else "face"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file imports, wherever in it the import stands: ``from a import b`` is a.b where that is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found |= {submodule(node.module, alias.name) for alias in node.names}
    return frozenset(found)


def submodule(module: str, name: str) -> str:
    below = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if below.with_suffix(".py").is_file() or (below / "__init__.py").is_file() else module


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def own(path: Path) -> set[str]:
    """The package's modules that a file imports."""
    return {name for name in imports(path) if name.split(".")[0] == "gpart"}


def test_every_file_stands_in_a_room() -> None:
    for path in files():
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        assert parts[0] in MAY_IMPORT or parts == ("__init__",), path


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_that_it_may(room: str) -> None:
    found = [path for path in files() if room_of(module_of(path)) == room]
    assert found
    for path in found:
        for name in own(path):
            assert room_of(name) in MAY_IMPORT[room] | {room}, f"{path} imports {name}"


@pytest.mark.parametrize("room", [*sorted(METHOD), "errors", "version", "face"])
def test_the_method_imports_torch_and_safetensors_and_nothing_heavier(room: str) -> None:
    for path in files():
        if room_of(module_of(path)) != room:
            continue
        late = ASKED_FOR.get(module_of(path), set())
        for name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names | LIGHT | {"gpart"} | late, f"{path} imports {name}"


@pytest.mark.parametrize("room", ELSEWHERE)
def test_tasks_and_data_know_no_other_method_either(room: str) -> None:
    for path in files():
        if room_of(module_of(path)) == room:
            assert not {name.split(".")[0] for name in imports(path)} & ELSEWHERE[room], path


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle in a graph of imports, or nothing."""
    done: set[str] = set()

    def visit(node: str, above: list[str]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        if node not in done:
            for other in sorted(graph.get(node, set())):
                if found := visit(other, [*above, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def longest(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain in a graph without circles."""

    @cache
    def below(node: str) -> tuple[str, ...]:
        return (node, *max((below(other) for other in graph.get(node, set())), key=len, default=()))

    return list(max((below(node) for node in graph), key=len))


def test_no_circle_of_files_and_none_of_rooms() -> None:
    """Imports in functions count. A package's own ``__init__`` is its face, which no file inside imports."""
    by_file = {module_of(path): own(path) - {module_of(path)} for path in files()}
    assert not circle(by_file)
    rooms: dict[str, set[str]] = {}
    for module, names in by_file.items():
        rooms.setdefault(room_of(module), set()).update(room_of(name) for name in names)
    rooms = {room: others - {room} for room, others in rooms.items()}
    assert not circle(rooms)
    chain = longest(rooms)
    assert len(chain) - 1 <= 8, " -> ".join(chain)


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
    assert longest({"a": {"b", "c"}, "b": {"c"}}) == ["a", "b", "c"]


def test_an_import_in_a_function_counts(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text("def late():\n    from gpart.ops import dispatch\n    import torch.nn\n")
    assert imports(path) == {"gpart.ops.dispatch", "torch.nn"}


def test_the_table_is_the_contributors_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for room in MAY_IMPORT:
        assert room == "face" or f"`{room}" in text or f"{room}.py" in text or f"{room}/" in text, room


def test_no_file_of_the_linked_folders_bears_a_librarys_name() -> None:
    """People run Python inside them, where a ``math.py`` would be the standard library's."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    for folder in LINKED[:3]:
        for path in (PACKAGE / folder).rglob("*"):
            if path.suffix == ".py" or path.is_dir():
                assert path.stem == "__init__" or path.stem not in taken - {"gpart_callback"}, path


@pytest.mark.parametrize("folder", LINKED[:3])
def test_python_runs_inside_the_linked_folders(folder: str) -> None:
    code = "import math, gpart; assert math.pi > 3; print(gpart.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # imports everything in a process of its own
def test_the_rooms_above_come_when_they_are_asked_for() -> None:
    code = (
        "import sys, gpart; light = 'lightning' not in sys.modules; gpart.callbacks.GPartCallback;"
        "gpart.packaged.fetch; print(light, 'lightning' in sys.modules); gpart.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["True", "True"]
    assert "module 'gpart' has no attribute 'nothing'" in done.stderr


def test_import_gpart_is_light() -> None:
    code = (
        "import sys, time, json, torch, safetensors.torch; before = set(sys.modules); t = time.perf_counter();"
        "import gpart; [getattr(gpart, name) for name in gpart.__all__]; print(json.dumps([time.perf_counter() - t, sorted({m.split('.')[0] for m in sys.modules}),"
        "sorted(set(sys.modules) - before)]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    _seconds, modules, new = json.loads(out)
    assert not (HEAVY | {"huggingface_hub"}) & set(modules)
    assert "filelock" not in modules
    assert not [name for name in new if name.startswith("torch._dynamo")]  # the compiler, ten times gpart's own time


def test_import_gpart_imports_no_torch_before_it_is_asked_for() -> None:
    code = (
        "import sys, gpart, gpart.cli; print('torch' in sys.modules, sorted(set(gpart.__all__) - set(dir(gpart))));"
        "print(gpart.Partition(4, 2).d, gpart.partition.SCHEME, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.split() == ["False", "[]", "2", "gpart-v1", "True"]


def test_the_top_folders_are_links() -> None:
    for room in LINKED:
        assert (ROOT / room).resolve() == PACKAGE / room


def test_every_dependency_and_ignored_rule_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    lines = text.splitlines()
    extras = project["project"]["optional-dependencies"]
    needed = [*project["project"]["dependencies"], *extras["vision"], *extras["math"], *extras["serve"]]
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
        "gpart/ops/cpu.c",
    } <= set(names)
    assert "gpart/architectures/google/gemma-7b.json" in names
    assert not [name for name in names if name.split("/")[0] in ("callbacks", "configs", "tests")]
