"""A run that is forked where its libraries are imported is what the same command gives as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

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


def test_an_interrupt_leaves_the_imports_alone() -> None:
    """Ctrl-C goes to the study and to the process that imports for it, which would tell where it was."""
    code = (
        "import os, signal, sys, types\n"
        "from gpart.cli import quiet\n"
        "quiet.silence_imports = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.modules['gpart.cli.training'] = types.ModuleType('training')\n"
        "import gpart.cli.imported\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_whose_start_was_interrupted_does_nothing(forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is forked all the same where the fork server was still importing."""
    begun: list[ForkServerProcess] = []
    real = ForkServerProcess.start

    def interrupted(self: ForkServerProcess) -> None:
        real(self)
        begun.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ForkServerProcess, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ended("out", COMMAND)
    begun[0].join(60)
    assert begun[0].exitcode == 0
    assert not Path("starts").exists()
    assert ended("again", COMMAND)[0] == 0
    assert Path("starts").exists()


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


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(("what", "status"), [("ok", 0), ("exit", 2)])
def test_where_there_is_cuda_nothing_is_forked(
    forked: Path, monkeypatch: pytest.MonkeyPatch, what: str, status: int, bound: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PLAN", json.dumps([("fit", {"do": what})]))
    Path("run").mkdir()
    with open("run/log.txt", "wb") as log:
        words = ["fit", "--trainer.callbacks.path=run/metrics.json"]
        child = start(COMMAND, words, log, (), bound)
    assert isinstance(child, subprocess.Popen)
    assert child.wait() == status
    assert Path("run/log.txt").read_text().startswith("the log's first line\n")
    assert Path("run/metrics.json").exists() == (what == "ok")


@pytest.mark.parametrize("cuda", [False, True])
def test_a_bound_run_is_killed_when_the_process_that_started_it_is(
    forked: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    monkeypatch.setenv("PLAN", json.dumps([("fit", {"do": "hang"})]))
    lines = (
        "import sys, torch",
        f"torch.cuda.is_available = lambda: {cuda}",
        "from gpart.studies.experiments.processes import start",
        "if __name__ == '__main__':",
        "    words = ['fit', '--trainer.callbacks.path=metrics.json']",
        "    with open('log.txt', 'wb') as log:",
        "        start((sys.executable, '-m', 'study_run'), words, log, (), True).wait()",
    )
    Path("parent.py").write_text("\n".join(lines), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, "parent.py"])
    until(lambda: Path("pid").exists() and Path("pid").read_text() != "")
    child = int(Path("pid").read_text())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    until(lambda: not running(child))


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_forked_run_holds_the_descriptors_until_it_is_ended(forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", json.dumps([("fit", {"do": "hang"})]))
    with open("log.txt", "wb") as log, open("lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = start(COMMAND, ["fit", "--trainer.callbacks.path=metrics.json"], log, [lock.fileno()])
    until(Path("pid").exists)
    with open("lock", "wb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.terminate()
        assert child.wait() == -15
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
