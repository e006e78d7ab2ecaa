"""What ``gpart`` says before any command is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpart.cli import main
from gpart.cli.commands import COMMANDS, LINES, TRAINING
from gpart.cli.training import GPartCLI
from gpart.version import __version__

# Each takes a part of a second to import, or seconds.
HEAVY = {"torch", "lightning", "transformers", "datasets", "torchvision", "peft", "timm", "jsonargparse", "matplotlib"}
CODE = """
import sys
from gpart.cli import main
status = main(sys.argv[1:])
print("imported:", *sys.modules)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("words", "status"), [([], 0), (["--help"], 0), (["--version"], 0), (["configs"], 0), (["trian"], 2)]
)
def test_it_is_answered_without_the_heavy_libraries(words: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    imported = done.stdout.rpartition("imported:")[2].split()
    assert "gpart.cli.main" in imported
    assert not HEAVY.intersection(imported)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_overview_has_a_line_for_each_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    commands = shown.split("commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in commands] == [*TRAINING, *COMMANDS]
    assert all(len(line.split()) > 2 for line in commands)
    assert "gpart fit --help" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_the_training_commands_are_lightnings() -> None:
    assert set(TRAINING) == set(GPartCLI.subcommands())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpart {__version__}\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("trian", "fit"), ("train", "fit"), ("evaluate", "validate"), ("confgis", "configs"), ("banch", "bench")],
)
def test_an_unknown_command_names_the_nearest_and_all(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "--config", "quickstart"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"gpart: error: there is no command '{word}', did you mean {meant}? ")
    assert all(name in said for name in LINES)


def test_words_that_are_near_nothing_are_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nosuch"]) == 2
    said = capsys.readouterr().err
    assert "there is no command '--nosuch'. There are fit, " in said


def test_lightning_takes_options_before_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "quickstart", "fit", "--nosuch"]) == 2
    assert capsys.readouterr().err == "gpart: error: unrecognized arguments: --nosuch\n"
