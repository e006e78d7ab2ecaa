"""A study's processes: what is started, kept, made again, chosen, left to others, and what is told of failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from gpart.cli.message import told
from gpart.errors import GPartError
from gpart.studies.experiments import running
from gpart.studies.experiments.cells import count_runs, run_cells
from gpart.studies.experiments.last_words import last_words
from gpart.studies.experiments.outcome import read_outcome
from gpart.studies.experiments.plan import Cell, plan
from gpart.studies.experiments.running import Event
from gpart.studies.experiments.schema import read_study

COMMAND = (sys.executable, str(Path(__file__).parents[2] / "helpers" / "study_run.py"))
CODE = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from gpart.cli.study import study_command; sys.exit(study_command(sys.argv[1:], {COMMAND!r}))"

STUDY: dict[str, Any] = {
    "folder": "out",
    "axes": {"task": {"RTE": {"metric": "accuracy"}}, "method": {"A": {"set": {"x": 1}}}},
    "columns": "task",
    "seeds": [0, 1],
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, outside of the studies' folder the record of what was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    return tmp_path


def cells_of(**changes: object) -> list[Cell]:
    Path("s.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return plan(read_study("s.yaml"))


def methods(**values: object) -> dict[str, object]:
    return {"task": {"RTE": {"metric": "accuracy"}}, "method": values}


def run(cells: list[Cell], command: tuple[str, ...] = COMMAND) -> list[Event]:
    events: list[Event] = []
    run_cells(cells, events.append, command)
    return events


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.name) for event in events if event.kind != "started"]


def starts() -> list[list[str]]:
    file = Path(os.environ["STARTS"])
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def do(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[str, dict[str, object]]) -> None:
    monkeypatch.setenv("PLAN", json.dumps(pairs))


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def test_every_run_once_and_kept_afterwards(work: Path) -> None:
    cells = cells_of(axes=methods(A=None, B=None))
    events = run(cells)
    names = [f"RTE / {method} / seed {seed}" for method in "AB" for seed in (0, 1)]
    assert [(event.kind, event.name) for event in events] == [
        (kind, name) for name in names for kind in ("started", "finished")
    ]
    runs = [one for cell in cells for one in cell.candidates[0].runs]
    assert starts() == [list(one.words) for one in runs]
    folder = Path("out/RTE/A/seed-1")
    command = json.loads((folder / "command.json").read_text())
    assert command["words"] == list(runs[1].words)
    assert command["command"].startswith(f"{sys.executable} ")
    assert (folder / "log.txt").read_text() == "the log's first line\n"
    assert kinds(run(cells)) == [("kept", name) for name in names]
    assert len(starts()) == 4


def test_the_shell_line_does_the_same(work: Path) -> None:
    cells = cells_of(axes=methods(**{"A b": {"set": {"x": ["it's", 1]}}}), seeds=[0])
    run(cells)
    command = json.loads(Path("out/RTE/A-b/seed-0/command.json").read_text())["command"]
    Path("out/RTE/A-b/seed-0/version_0").rmdir()
    subprocess.run(command, shell=True, check=True)
    assert starts()[0] == starts()[1]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("exit", "exit status 2; gpart: error: d must be 1 or more (log: out/RTE/A/seed-0/log.txt)"),
        ("kill", "ended by SIGKILL; the log's first line (log:"),
        ("quiet", "no metrics.json; the log's first line (log:"),
        ("fitted", "state 'fitted' in metrics.json, not 'tested'"),
        ("late", "exit status 1;"),
    ],
)
def test_a_failed_run_is_told_of_and_tried_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    do(monkeypatch, ("seed_everything=0", {"do": what}))
    cells = cells_of()
    events = run(cells)
    assert kinds(events) == [("failed", "RTE / A / seed 0"), ("finished", "RTE / A / seed 1")]
    assert said in events[1].text
    do(monkeypatch)
    assert [kind for kind, _ in kinds(run(cells))] == ["finished", "kept"]


def test_what_the_command_says_of_a_mistake_is_told_to_its_end(tmp_path: Path) -> None:
    message = "gpart: error: " + told(GPartError("x" * 1000))
    (tmp_path / "log.txt").write_text(f"{message}\nlater\n")
    assert last_words(tmp_path / "log.txt") == message
    (tmp_path / "log.txt").write_text("y" * 5000)
    assert last_words(tmp_path / "log.txt") == "y" * 620


def test_a_command_that_is_not_there_fails_each_run(work: Path) -> None:
    events = run(cells_of(), ("no/such/program",))
    assert [event.kind for event in events] == ["started", "failed"] * 2
    assert "no/such/program cannot be started" in events[1].text


def test_changed_words_are_run_again_in_an_empty_folder(work: Path) -> None:
    run(cells_of())
    left = Path("out/RTE/A/seed-0/version_0")
    (left / "old.ckpt").write_text("")
    os.symlink(work, Path("out/RTE/A/seed-0/link"))
    changed = cells_of(axes=methods(A={"set": {"x": 2}}))
    events = run(changed)
    assert [event.kind for event in events] == ["started", "finished"] * 2
    kept = "out/RTE/A/seed-0.before"
    assert events[0].text == f"again, as it was run with other words; what had finished before is kept in {kept}"
    assert not Path(kept).exists()
    assert not (left / "old.ckpt").exists()
    assert sorted(path.name for path in left.parent.iterdir()) == [
        "command.json",
        "log.txt",
        "metrics.json",
        "version_0",
    ]
    assert (work / "s.yaml").exists()
    assert {kind for kind, _ in kinds(run(changed))} == {"kept"}


def content(folder: str | Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in Path(folder).rglob("*") if file.is_file()}


def changed(x: object = "1x") -> list[Cell]:
    return cells_of(axes=methods(A={"set": {"x": x}}), seeds=[0])


@pytest.fixture
def finished(work: Path) -> dict[str, str]:
    """The content of a finished run's folder; its study is that of changed(1)."""
    run(changed(1))
    Path("out/RTE/A/seed-0/version_0/best.ckpt").write_text("trained")
    return content("out/RTE/A/seed-0")


FOLDER, BEFORE = Path("out/RTE/A/seed-0"), Path("out/RTE/A/seed-0.before")


def test_a_mistyped_word_costs_no_finished_run(finished: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("x=1", {"do": "exit"}))
    for value in ("1x", "1xx", "1xx"):
        events = run(changed(value))
        assert kinds(events) == [("failed", "RTE / A / seed 0")]
        assert events[-1].text.endswith("log.txt); what had finished before is kept in out/RTE/A/seed-0.before")
        assert content(BEFORE) == finished
        assert "d must be 1" in (FOLDER / "log.txt").read_text()  # the failed run's own
        assert read_outcome(changed(value)[0].candidates[0].runs[0]).why.startswith("exit status 2; gpart: error: d")
    assert run(changed(1)) == [Event("kept", "RTE / A / seed 0", "taken back from out/RTE/A/seed-0.before")]
    assert content(FOLDER) == finished
    assert not BEFORE.exists()
    assert len(starts()) == 4
    assert run(changed(1)) == [Event("kept", "RTE / A / seed 0")]


def test_a_stopped_run_costs_no_finished_one(finished: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(running, "start", stop)
        with pytest.raises(KeyboardInterrupt):
            run(changed())
    assert content(BEFORE) == finished
    do(monkeypatch)
    assert kinds(run(changed())) == [("finished", "RTE / A / seed 0")]
    assert not BEFORE.exists()


@pytest.mark.parametrize("at", range(1, 12))
def test_a_study_killed_at_any_file_costs_no_finished_run(
    finished: dict[str, str], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed where it makes, moves or removes something for the at-th time: other words fail, and the old come back."""
    do(monkeypatch, ("x=1x", {"do": "exit"}))
    left = at

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: object, **named: object) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise SystemExit(9)
            return real(*given, **named)

        return call

    with monkeypatch.context() as patched:
        for name in ("rename", "mkdir", "rmdir", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        try:
            run(changed())
            run(changed(1))
        except SystemExit:
            pass
    assert finished in [content(folder) for folder in (FOLDER, BEFORE) if folder.exists()]
    assert [event.kind for event in run(changed(1))] == ["kept"]
    assert content(FOLDER) == finished
    assert not BEFORE.exists()
    assert sum("--x=1" in words for words in starts()) == 1


def test_what_is_left_of_a_killed_removal_is_no_result(finished: dict[str, str]) -> None:
    BEFORE.mkdir()
    for name in ("command.json", "log.txt"):
        (BEFORE / name).write_text(finished[name])
    assert run(changed(1)) == [Event("kept", "RTE / A / seed 0")]
    assert not BEFORE.exists()


def test_a_foreign_folder_in_the_place_of_what_is_kept(finished: dict[str, str]) -> None:
    BEFORE.mkdir()
    (BEFORE / "thesis.tex").write_text("mine")
    events = run(changed())
    assert kinds(events) == [("failed", "RTE / A / seed 0")]
    assert "out/RTE/A/seed-0.before is there and no run of a study" in events[0].text
    assert [event.kind for event in run(changed(1))] == ["kept"]
    assert content(BEFORE) == {"thesis.tex": "mine"}
    assert content(FOLDER) == finished


def test_a_killed_process_leaves_nothing_to_the_next(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(seeds=[0])
    run(cells)
    folder = Path("out/RTE/A/seed-0")
    whole = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(whole[: len(whole) // 2])
    assert kinds(run(cells)) == [("finished", "RTE / A / seed 0")]
    assert (folder / "metrics.json").read_text() == whole


def test_a_study_killed_before_it_had_named_its_run_is_no_obstacle(work: Path) -> None:
    folder = Path("out/RTE/A/seed-0")
    folder.mkdir(parents=True)
    (folder / ".command.json.1-ab.part").write_text("{")
    Path("out/RTE/A/seed-1").mkdir()
    assert [kind for kind, _ in kinds(run(cells_of()))] == ["finished"] * 2
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("carries", [None, "{}", "[", '["words"]'])
def test_a_foreign_folder_is_never_emptied(work: Path, carries: str | None) -> None:
    folder = Path("out/RTE/A/seed-0")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    if carries is not None:
        (folder / "command.json").write_text(carries)
    before = sorted(folder.iterdir())
    for _ in range(2):
        events = run(cells_of(seeds=[0]))
        assert kinds(events) == [("failed", "RTE / A / seed 0")]
        assert "out/RTE/A/seed-0 is there and no run of a study" in events[0].text
        assert sorted(folder.iterdir()) == before
    assert starts() == []


def test_a_file_in_a_folders_place_is_a_failure_of_that_run(work: Path) -> None:
    Path("out/RTE/A").mkdir(parents=True)
    Path("out/RTE/A/seed-0").write_text("mine")
    assert kinds(run(cells_of())) == [("failed", "RTE / A / seed 0"), ("finished", "RTE / A / seed 1")]
    assert Path("out/RTE/A/seed-0").read_text() == "mine"
    Path("out/RTE/B").write_text("mine")
    assert [kind for kind, _ in kinds(run(cells_of(axes=methods(B=None))))] == ["failed"] * 2


TUNED = {"tune": {"lr": [1, 2, 3]}}


def test_the_validation_score_chooses_and_the_test_score_does_not(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("lr=1", {"val": 0.6, "test": 0.9}), ("lr=2", {"val": 0.7, "test": 0.1}), ("lr=3", {"val": 0.7}))
    cells = cells_of(axes=methods(A=TUNED))
    events = run(cells)
    assert [name for _, name in kinds(events)] == [
        "RTE / A / lr=1 / seed 0",
        "RTE / A / lr=2 / seed 0",
        "RTE / A / lr=3 / seed 0",
        "RTE / A / lr=2 / seed 1",  # the first of equals
    ]
    assert count_runs(cells) == 4
    assert len(starts()) == 4
    assert "--lr=2" in starts()[3]


def test_several_seeds_choose_by_their_mean(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lr=1 is best with seed 0 alone, lr=2 in the mean, and lr=3, which is best of all with seed 1, fails with seed 0."""
    do(
        monkeypatch,
        ("lr=1&everything=0", {"val": 0.9}),
        ("lr=1&everything=1", {"val": 0.1}),
        ("lr=2", {"val": 0.6}),
        ("lr=3&everything=0", {"do": "exit"}),
        ("lr=3&everything=1", {"val": 1.0}),
    )
    cells = cells_of(axes=methods(A=TUNED), seeds=[0, 1, 2], tune_seeds=2)
    events = run(cells)
    assert [name for _, name in kinds(events)] == [
        *(f"RTE / A / lr={lr} / seed {seed}" for lr in (1, 2, 3) for seed in (0, 1)),
        "RTE / A / lr=2 / seed 2",
    ]
    assert count_runs(cells) == 7 == len(starts())


def test_a_loss_chooses_by_its_lowest_value(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("lr=1", {"val": 0.9, "mode": "min"}), ("lr=2", {"val": 0.3, "mode": "min"}))
    events = run(cells_of(axes=methods(A={"tune": {"lr": [1, 2]}})))
    assert [name for kind, name in kinds(events) if "seed 1" in name] == ["RTE / A / lr=2 / seed 1"]


def test_a_failed_candidate_leaves_the_choice_to_the_others(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("lr=1", {"do": "exit"}), ("lr=2", {"val": float("nan")}), ("lr=3", {"val": -1.0}))
    assert kinds(run(cells_of(axes=methods(A=TUNED))))[-1] == ("finished", "RTE / A / lr=3 / seed 1")


def test_without_a_choice_the_other_seeds_are_left_out(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("fit", {"val": None}), ("lr=3", {"do": "exit"}))
    events = run(cells_of(axes=methods(A=TUNED)))
    assert kinds(events)[3:] == [("unchosen", "RTE / A"), ("skipped", "RTE / A / seed 1")]
    assert events[-2].text.startswith("none of 3 candidates has a validation score")
    do(monkeypatch, ("fit", {"do": "exit"}))
    again = cells_of(axes=methods(B=TUNED))
    assert [kind for kind, _ in kinds(run(again))] == ["failed"] * 3 + ["skipped"]


def test_one_candidate_needs_no_validation_score(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("fit", {"val": None}))
    assert [kind for kind, _ in kinds(run(cells_of(axes=methods(A={"tune": {"lr": [1]}}))))] == ["finished"] * 2


def test_a_metric_that_is_not_there_is_told_of_and_not_run_again(work: Path) -> None:
    cells = cells_of(axes={"task": {"RTE": {"metric": "acuracy"}}}, seeds=[0])
    for _ in range(2):
        events = run(cells)
        assert events[-1].kind == "failed"
        assert (
            events[-1].text == "metric 'acuracy': its test gave no test/acuracy or acuracy but test/accuracy, test/f1"
        )
    assert len(starts()) == 1
    assert kinds(run(cells_of(axes={"task": {"RTE": {"metric": "f1"}}}, seeds=[0]))) == [("kept", "RTE / seed 0")]


@contextmanager
def waiting_for(cells: list[Cell], name: str) -> Iterator[list[Event]]:
    """The events of a study, when it has nothing left to make but a run that another is at; at the end it has ended."""
    events: list[Event] = []
    thread = threading.Thread(target=run_cells, args=(cells, events.append, COMMAND), daemon=True)
    thread.start()
    until(lambda: ("waiting", name) in kinds(events))
    yield events
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_locked_run_is_waited_for_when_all_else_is_made(work: Path) -> None:
    cells = cells_of(axes=methods(A=TUNED, B=None))
    Path("out/RTE/A/lr=2").mkdir(parents=True)
    lock = FileLock("out/RTE/A/lr=2/seed-0.lock")
    lock.acquire()
    with waiting_for(cells, "RTE / A / lr=2 / seed 0") as events:
        assert [kind for kind, _ in kinds(events)] == ["finished", "finished", "finished", "finished", "waiting"]
        assert kinds(events)[2][1] == "RTE / B / seed 0"
        lock.release()
    # Nobody made it, so this study did, and then what follows from the choice.
    assert [kind for kind, _ in kinds(events)[5:]] == ["finished", "finished"]
    assert len(starts()) == count_runs(cells)
    assert {kind for kind, _ in kinds(run(cells))} == {"kept"}


def test_two_studies_at_once_share_the_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("fit", {"do": "slow"}))
    cells = cells_of(axes=methods(A=TUNED, B=None, C=TUNED))
    told: list[list[Event]] = [[], []]
    threads = [threading.Thread(target=run_cells, args=(cells, events.append, COMMAND)) for events in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Nothing is left, nothing is done twice, and each study has waited for all.
    assert len(starts()) == count_runs(cells) == 10
    for events in told:
        ended = [name for kind, name in kinds(events) if kind != "waiting"]
        assert len(ended) == len(set(ended)) == 10
    assert {kind for kind, _ in kinds(run(cells))} == {"kept"}


@pytest.fixture
def hanging(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A study in its second run, which hangs, and that run's process id."""
    do(monkeypatch, ("seed_everything=1", {"do": "hang"}))
    cells_of()
    study = subprocess.Popen([sys.executable, "-c", CODE, "s.yaml"], stdout=subprocess.PIPE, text=True)
    pid = int(until(lambda: (file := Path("out/RTE/A/seed-1/pid")).exists() and file.read_text()))
    yield study, pid
    for process in (study.pid, pid):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    study.communicate()


def alive(pid: int) -> bool:
    try:
        # A killed orphan may stay a zombie where nobody waits for it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_stops_its_run_and_goes_on_later(
    hanging: tuple[subprocess.Popen[str], int], monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    study, pid = hanging
    study.send_signal(number)
    out, _ = study.communicate(timeout=30)
    assert study.returncode == status
    assert not alive(pid)
    assert "Traceback" not in out
    assert number != signal.SIGINT or "not finished starts again from its first step" in out
    do(monkeypatch)
    assert [kind for kind, _ in kinds(run(cells_of()))] == ["kept", "finished"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_studys_run_keeps_its_lock_while_it_lives(
    hanging: tuple[subprocess.Popen[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, pid = hanging
    study.kill()
    study.wait()
    assert alive(pid)
    do(monkeypatch)
    with waiting_for(cells_of(), "RTE / A / seed 1") as events:
        assert alive(pid)
        assert [event.kind for event in events] == ["kept", "waiting"]
        os.kill(pid, signal.SIGKILL)
    assert [event.kind for event in events] == ["kept", "waiting", "started", "finished"]


def test_a_run_that_does_not_end_when_asked_is_killed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, ("fit", {"do": "stubborn"}))
    monkeypatch.setattr(running, "GRACE", 0.2)
    cells = cells_of(seeds=[0])
    file = Path("out/RTE/A/seed-0/pid")
    children: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout: float | None = None) -> int:
            if not children:
                until(lambda: file.exists() and file.read_text())
                children.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cells)
    assert children[0].poll() == -signal.SIGKILL
    assert not FileLock("out/RTE/A/seed-0.lock").is_locked
    with FileLock("out/RTE/A/seed-0.lock").acquire(blocking=False):
        pass
