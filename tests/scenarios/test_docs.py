"""The pages of docs/ say what runs: their blocks of Python are run, in order, in one namespace a page; their commands
are parsed, the short ones run, and the quick start's are run on less data."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *("isometry.md", "landscape.md", "own-data.md", "projections.md", "several.md"),
    *("start/install.md", "start/your-project.md", "concepts/partition.md", "concepts/isometry.md"),
    *("concepts/layers.md", "concepts/files.md", "concepts/precision.md", "howto/recipes.md"),
    *("howto/lightning-module.md", "howto/networks.md", "howto/fused-weights.md", "howto/memory.md"),
    "howto/failed-run.md",
]
ELSEWHERE = {
    "arithmetic.md": "doctests, run by tests/arithmetic",
    "fabric.md": "run by tests/scenarios/test_fabric.py",
    "scaling.md": "outlines of classes for several processes",
    "serving.md": "parts of a program that has a model and a server",
    "adapters.md": "a name on the hub that is no one's",
    "start/quick-start.md": "needs what its commands train, below",
}
"""Pages with blocks of Python that are not run here, and why."""

RUN = [
    "gpart --version",
    "gpart configs",
    "gpart configs --copy quickstart",
    "gpart params roberta-base",
    "gpart params Qwen/Qwen2.5-0.5B --d 131072 --memory",
    "gpart study studies/glue-base --dry-run",
]
"""Short commands of the pages, as they stand there."""

LESS = {
    "fit": "--trainer.max_steps 2 --trainer.limit_val_batches 2 --data.train_size 64 --trainer.enable_progress_bar false",
    "predict": "--trainer.enable_progress_bar false",
}
"""Words that make the quick start short."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The lines of a page's blocks of bash that begin with gpart, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("gpart ")]


def run(page: str) -> None:
    names: dict[str, object] = {"__name__": page}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert blocks(page, "python")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*does not have many workers")  # two cores; the pages' loaders are small
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec")  # torch's own, from Lightning
        run(page)


def test_every_page_with_python_is_run_or_said_not_to_be() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))]
    assert {page for page in pages if blocks(page, "python")} == {*PAGES, *ELSEWHERE}


@pytest.mark.parametrize("line", RUN)
def test_a_short_command_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpart.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_commands_of_the_pages_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is parsed; what trains is looked at by its recipes here, and as a whole by the slow test below."""
    monkeypatch.syspath_prepend(str(DOCS / "generate"))
    from commands import parser_of

    from gpart.cli.commands import COMMANDS, TRAINING
    from gpart.cli.configs import find_recipe

    lines = {line for path in DOCS.rglob("*.md") for line in commands(path.relative_to(DOCS).as_posix())}
    assert len(lines) > 25
    assert set(RUN) <= lines
    for line in sorted(lines - {"gpart --version"}):
        name, *words = [word for word in shlex.split(line)[1:] if word != "&"]
        if name in TRAINING:
            assert all(find_recipe(words[at + 1]) for at, word in enumerate(words) if word == "--config"), line
        else:
            assert name in COMMANDS, line
            # The page's own placeholders stand for values, and an optional one is in brackets.
            plain = [word.strip("[]") for word in words]
            parser_of(name).parse_known_args(plain)
            known = {option for action in parser_of(name)._actions for option in action.option_strings}
            assert {word.partition("=")[0] for word in plain if word.startswith("--")} <= known, line


@pytest.mark.slow
def test_what_trains_is_known_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    from gpart.cli import main
    from gpart.cli.commands import TRAINING

    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    lines = {line for page in pages for line in commands(page) if line.split()[1] in TRAINING}
    looked_at = 0
    for line in sorted(lines):
        words = shlex.split(line)[1:]
        if "..." in line or any(word.endswith("quickstart.yaml") for word in words):
            continue
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert stop.value.code in (0, None), line
        assert "class_path" in capsys.readouterr().out, line
        looked_at += 1
    assert looked_at > 5


@pytest.mark.slow
def test_the_quick_start_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpart.cli import main

    monkeypatch.chdir(tmp_path)
    lines = commands("start/quick-start.md")
    assert [line.split()[1] for line in lines] == ["fit", "predict", "inspect", "fit", "fit"]
    for line in lines[:3]:
        words = shlex.split(line)[1:]
        assert main([*words, *LESS.get(words[0], "").split()]) == 0, line
    run("start/quick-start.md")
    for line in lines[3:]:
        assert main([*shlex.split(line)[1:], *LESS["fit"].split()]) == 0, line
