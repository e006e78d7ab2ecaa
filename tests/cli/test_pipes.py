"""A command whose reader goes before it has written all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpart.cli import main

GPART = [sys.executable, "-m", "gpart.cli"]


@pytest.mark.parametrize(
    ("words", "unbuffered", "statuses"),
    [
        (["--version"], "", {141}),  # fails where main flushes, and would again at the exit
        (["configs"], "1", {141}),  # fails in print
        pytest.param(["params", "roberta-base"], "", {141}, marks=pytest.mark.slow),  # Rich prints it, and catches it
        pytest.param(  # fails while words are parsed
            ["fit", "--config=quickstart", "--print_config"], "1", {141}, marks=pytest.mark.slow
        ),
        pytest.param(["fit", "--help"], "", {0, 141}, marks=pytest.mark.slow),  # argparse lets a failed write pass
    ],
)
def test_without_a_reader_it_ends_quietly(words: list[str], unbuffered: str, statuses: set[int]) -> None:
    reading, writing = os.pipe()
    subprocess.run([sys.executable, "-c", ""], stdin=reading, check=True)  # a reader that reads nothing
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [*GPART, *words], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in statuses


def test_both_outputs_without_a_reader() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*GPART, "trian"], stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 141


def test_head_gets_its_line() -> None:
    gpart = subprocess.Popen([*GPART, "configs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    head = subprocess.run(["head", "-1"], stdin=gpart.stdout, capture_output=True, text=True, check=True)
    assert gpart.stdout is not None
    gpart.stdout.close()
    assert gpart.stderr is not None
    with gpart.stderr as stream:
        assert stream.read() == ""
    assert gpart.wait() in {0, 141}  # whether it had written all before head was gone is chance
    assert head.stdout.startswith("glue/cola ")
    assert head.stdout.count("\n") == 1


def test_a_broken_pipe_elsewhere_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def between_processes(words: list[str]) -> int:
        raise BrokenPipeError("a worker's pipe")

    monkeypatch.setattr("gpart.cli.configs.configs_command", between_processes)
    with pytest.raises(BrokenPipeError, match="a worker's pipe"):
        main(["configs"])


def test_an_exit_for_another_reason_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(words: list[str]) -> int:
        raise SystemExit(1)

    monkeypatch.setattr("gpart.cli.configs.configs_command", stops)
    with pytest.raises(SystemExit) as stop:
        main(["configs"])
    assert stop.value.code == 1
