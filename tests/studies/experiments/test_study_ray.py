"""A study on Ray: the same table, runs whose files come back, and no process that outlives its worker or its study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gpart.cli.study import study_command
from gpart.errors import GPartError
from gpart.studies.experiments.outcome import read_outcome
from gpart.studies.experiments.plan import Cell, Run, plan
from gpart.studies.experiments.ray_engine import RayRequest, _make, _received, run_cells_on_ray
from gpart.studies.experiments.running import Event, settled
from gpart.studies.experiments.schema import read_study

HELPERS = Path(__file__).parents[2] / "helpers"
COMMAND = (sys.executable, "-m", "study_run")
CODE = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from gpart.cli.study import study_command; sys.exit(study_command(sys.argv[1:], {COMMAND!r}))"
PLAN = [("lr=2", {"val": 0.9, "test": 0.7}), ("method.d=3", {"do": "exit"})]
STUDY: dict[str, Any] = {
    "folder": "out",
    "axes": {
        "task": {"RTE": {"metric": "accuracy"}},
        "method": {"A": {"tune": {"lr": [1, 2]}}, "B": {"set": {"method.d": 3}}},
    },
    "columns": "task",
    "seeds": [0, 1],
}
LOCAL = RayRequest("local")


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """A study's cells, in an empty current folder, and what its runs do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("PLAN", json.dumps(PLAN))
    monkeypatch.setenv("PYTHONPATH", str(HELPERS), prepend=os.pathsep)
    monkeypatch.syspath_prepend(HELPERS)
    Path("s.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return plan(read_study("s.yaml"))


def small_files() -> dict[str, bytes]:
    files = [*Path("out").rglob("*.json"), *Path("out").rglob("log.txt"), *Path("out").glob("table.*")]
    return {str(file): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux only")
def test_the_files_and_the_table_are_those_without_ray(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    assert study_command(["s.yaml"], COMMAND) == 1
    plain, said = small_files(), capsys.readouterr().out
    Path("out").rename("plain")
    assert study_command(["s.yaml", "--ray", "local"], COMMAND) == 1
    assert small_files() == plain
    assert {"out/table.md", "out/RTE/A/lr=2/seed-1/metrics.json", "out/RTE/B/seed-0/log.txt"} <= plain.keys()
    lines = [line for line in said.splitlines() if not line.startswith("started")]
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(lines)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_outlives_its_worker_or_its_study(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PLAN", json.dumps([("seed_everything=1", {"do": "hang"})]))
    Path("s.yaml").write_text(yaml.safe_dump(STUDY | {"axes": {"task": {"RTE": {"metric": "accuracy"}}}}))
    file = Path("out/RTE/seed-1/pid")
    study = subprocess.Popen([sys.executable, "-c", CODE, "s.yaml", "--ray", "local"], stdout=subprocess.PIPE)
    try:
        first = int(until(lambda: file.exists() and file.read_text(), 120))
        # The run's parent is the fork server, whose parent is the worker.
        os.kill(parent_of(parent_of(first)), signal.SIGKILL)
        second = int(
            until(lambda: file.exists() and file.read_text() not in ("", str(first)) and file.read_text(), 120)
        )
        assert not alive(first)
        assert alive(second)
        study.send_signal(number)
        study.communicate(timeout=60)
        assert study.returncode == status
        until(lambda: not alive(second), 30)
    finally:
        study.kill()
        study.communicate()
    assert read_outcome(plan(read_study("s.yaml"))[0].candidates[0].runs[0]).state == "finished"


def until(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    try:
        # A killed orphan may stay a zombie where nobody waits for it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def made_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[Event, dict[str, bytes]]:
    """What a worker gives that has not the study's folder but one of its own."""
    Path("worker").mkdir()
    with monkeypatch.context() as patched:
        patched.chdir("worker")
        return _make(run, COMMAND[1:], "/no/such/folder")


def test_without_a_common_folder_the_small_files_come_back(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    run = cells[0].candidates[1].runs[0]
    assert not settled(run, [].append)
    sent = made_elsewhere(run, monkeypatch)
    assert read_outcome(run).state == "missing"
    ray = SimpleNamespace(get=lambda _: sent, exceptions=SimpleNamespace(RayError=RuntimeError))
    assert _received(ray, None, run) == Event("finished", run.name)
    assert read_outcome(run).number("test", "test/accuracy") == 0.7
    assert sorted(file.name for file in run.folder.iterdir()) == ["command.json", "log.txt", "metrics.json"]
    told: list[Event] = []
    assert settled(run, told.append)
    assert told == [Event("kept", run.name)]


def test_what_had_finished_here_is_kept_until_the_worker_has_finished(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cells[0].candidates[1].runs[0]
    old = replace(run, words=("fit", *run.words))
    run.folder.mkdir(parents=True)
    (run.folder / "command.json").write_text(json.dumps({"words": old.words}))
    (run.folder / "metrics.json").write_text('{"state": "tested"}')
    assert not settled(run, [].append)
    assert list(run.folder.iterdir()) == []
    ray = SimpleNamespace(get=lambda _: sent, exceptions=SimpleNamespace(RayError=RuntimeError))
    sent: tuple[Event, dict[str, bytes]] = Event("failed", run.name, "exit status 2"), {}
    note = f"exit status 2; what had finished before is kept in {run.before}"
    assert _received(ray, None, run).text == note
    sent = Event("failed", run.name, note), {}  # as of a worker with this file system
    assert _received(ray, None, run).text == note
    assert run.before.exists()
    sent = made_elsewhere(run, monkeypatch)
    assert _received(ray, None, run) == Event("finished", run.name)
    assert not run.before.exists()


def test_a_failure_elsewhere_comes_back_with_its_log(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    run = cells[1].candidates[0].runs[0]
    assert not settled(run, [].append)
    sent = made_elsewhere(run, monkeypatch)
    ray = SimpleNamespace(get=lambda _: sent, exceptions=SimpleNamespace(RayError=RuntimeError))
    assert _received(ray, None, run).text.startswith("exit status 2; gpart: error: d must be 1 or more (log: ")
    assert read_outcome(run).state == "failed"
    assert "d must be 1" in (run.folder / "log.txt").read_text()


def test_a_lost_run_is_a_failure_and_made_again_the_next_time(cells: list[Cell]) -> None:
    def get(_: object) -> None:
        raise RuntimeError("first\nthe worker died")

    run = cells[1].candidates[0].runs[0]
    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RuntimeError))
    assert _received(ray, None, run) == Event("failed", run.name, "Ray lost it: the worker died")
    assert read_outcome(run).state == "missing"


def test_a_foreign_folder_and_a_run_of_another_study_are_left_alone(cells: list[Cell]) -> None:
    run = cells[1].candidates[0].runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "thesis.tex").write_text("mine")
    told: list[Event] = []
    assert settled(run, told.append)
    assert told[0].kind == "failed"
    assert (run.folder / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus-per-run", "1"], "--gpus-per-run 1 is for --ray"),
        (["--ray", "--cpus-per-run", "-1"], "cpus-per-run"),
        (["--ray", "--gpus-per-run", "inf"], "gpus-per-run"),
    ],
)
def test_what_is_asked_of_ray_is_checked(cells: list[Cell], words: list[str], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        study_command(["s.yaml", *words], COMMAND)
    assert not Path("out").exists()


def test_without_ray_the_message_says_what_to_install(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GPartError, match=r"pip install 'gpart-lightning\[ray\]'"):
        run_cells_on_ray(cells, [].append, LOCAL, COMMAND)


@pytest.mark.slow
def test_a_run_that_ray_has_no_place_for_is_refused(cells: list[Cell]) -> None:
    pytest.importorskip("ray")
    with pytest.raises(GPartError, match=r"each run asks for 99 GPUs, and Ray has \d+ in all"):
        run_cells_on_ray(cells, [].append, RayRequest("local", gpus=99), COMMAND)
