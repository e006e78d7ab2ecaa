"""A run that is forked where its libraries are imported is what the same command gives as a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from gpart.studies.experiments.processes import start

fcntl = pytest.importorskip("fcntl")  # Windows has none
HELPERS = Path(__file__).parents[2] / "helpers"
COMMAND = (sys.executable, "-m", "study_run")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a run is forked on Linux only")


@pytest.fixture
def forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where :data:`COMMAND` can be forked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("PYTHONPATH", str(HELPERS), prepend=os.pathsep)
    monkeypatch.syspath_prepend(HELPERS)
    return tmp_path


def ended(folder: str, command: tuple[str, ...]) -> tuple[int, str]:
    Path(folder).mkdir()
    with open(f"{folder}/log.txt", "wb") as log:
        status = start(command, ["fit", f"--trainer.callbacks.path={folder}/metrics.json"], log, ()).wait()
    return status, Path(folder, "log.txt").read_text()


@pytest.mark.parametrize(("what", "status"), [("ok", 0), ("exit", 2), ("kill", -9)])
def test_a_forked_run_ends_and_says_as_a_process_of_its_own_does(
    forked: Path, monkeypatch: pytest.MonkeyPatch, what: str, status: int
) -> None:
    monkeypatch.setenv("PLAN", json.dumps([("fit", {"do": what})]))  # it changes after the server has been started
    first = ended("forked", COMMAND)
    # Python's own spelling of the same command, which is not forked.
    assert first == ended("plain", (sys.executable, "-B", "-m", "study_run"))
    assert first[0] == status
    assert first[1].startswith("the log's first line\n")
    assert Path("forked/metrics.json").exists() == (what == "ok")


def test_a_forked_run_holds_the_descriptors_until_it_is_ended(forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", json.dumps([("fit", {"do": "hang"})]))
    with open("log.txt", "wb") as log, open("lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = start(COMMAND, ["fit", "--trainer.callbacks.path=metrics.json"], log, [lock.fileno()])
    end = time.monotonic() + 30
    while not Path("pid").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    with open("lock", "wb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.terminate()
        assert child.wait() == -15
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
