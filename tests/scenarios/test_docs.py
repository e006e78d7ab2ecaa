"""The README and the pages of docs/ say what runs: their blocks of Python are run, in order, in one namespace a page; their
commands are parsed, the short ones run, and those of the README and the quick start are run on less data."""

from __future__ import annotations

import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = "../README.md"
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
    README: "needs a module of the reader's, below",
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
    """The commands in a page's blocks of bash that begin with gpart, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    each = [part.partition("  #")[0].strip() for line in lines for part in line.split(" && ")]
    return [line for line in each if line.startswith("gpart ")]


def pages() -> list[str]:
    return [README, *(path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md")))]


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
    assert {page for page in pages() if blocks(page, "python")} == {*PAGES, *ELSEWHERE}


class Reader(LightningModule):
    """A module as the README's reader has one."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"query": nn.Linear(160, 160), "value": nn.Linear(160, 160), "classifier": nn.Linear(160, 2)}
        self.model = nn.ModuleDict(layers)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        both = self.model["query"](batch) + self.model["value"](batch)
        return self.model["classifier"](both).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging interval")
def test_the_one_line_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(README, "python")
    module = Reader()
    before = module.model["query"].weight.detach().clone()
    names = {"module": module, "datamodule": DataLoader(torch.randn(8, 160), batch_size=2)}
    exec(compile(block.replace("Trainer(\n", "Trainer(max_epochs=2, accelerator='cpu',\n"), README, "exec"), names)
    assert torch.equal(module.model["query"]._parameters["weight"], before)
    assert not torch.equal(module.model["query"].weight, before)


def test_the_readme_is_read_in_one_go() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130


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

    lines = {line for page in pages() for line in commands(page)}
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

    lines = {line for page in pages() for line in commands(page) if line.split()[1] in TRAINING}
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


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpart.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    (tmp_path / "new.csv").write_text("message\nMy card was charged twice.\n")
    lines = commands(README)
    assert [line.split()[1] for line in lines] == ["fit", "predict", "fit", "predict"]
    for line in lines:
        words = shlex.split(line)[1:]
        less = LESS[words[0]]
        if "text" in words:
            less = less.replace(" --data.train_size 64", "")
        assert main([*words, *less.split()]) == 0, line
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
