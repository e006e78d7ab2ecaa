"""The script that packs a study's runs into one file: what goes in, what comes out, what it leaves alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from gpart.cli.study import study_command
from gpart.errors import GPartError

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "records.py"
COMMAND = (sys.executable, str(Path(__file__).parents[2] / "helpers" / "study_run.py"))
STUDY: dict[str, Any] = {
    "folder": "out",
    "axes": {
        "task": {"RTE": {"metric": "accuracy"}},
        "method": {"A": None, "B": {"tune": {"lr": [0.1, 0.2, 0.3]}}},
    },
    "columns": "task",
    "seeds": [0, 1],
}
TABLES = [f"out/table.{ending}" for ending in ("md", "tex", "csv", "json")]


@pytest.fixture(scope="module")
def records() -> Any:
    spec = importlib.util.spec_from_file_location("records", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that has been run: the second rate is the best, the third fails before it writes anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    plans = [["--lr=0.2", {"val": 0.75, "test": float("nan")}], ["--lr=0.3", {"do": "exit"}], ["A&=1", {"do": "late"}]]
    monkeypatch.setenv("PLAN", json.dumps(plans))
    Path("s.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    study_command(["s.yaml"], COMMAND)
    return Path("s.yaml")


def test_the_same_tables_come_out_of_a_fresh_folder(records: Any, study: Path) -> None:
    before = [Path(table).read_bytes() for table in TABLES]
    files = {path: path.read_text() for path in Path("out").rglob("command.json")}
    assert records.pack(study, Path("r.jsonl")) == "r.jsonl: 6 records (4 finished, 2 failed, 2 missing)"
    shutil.rmtree("out")
    assert records.unpack(study, Path("r.jsonl")) == "r.jsonl: 6 records (6 written)"
    assert {path: path.read_text() for path in Path("out").rglob("command.json")} == files
    study_command(["s.yaml", "--table"])
    assert [Path(table).read_bytes() for table in TABLES] == before
    packed = Path("r.jsonl").read_bytes()
    records.pack(study, Path("again.jsonl"))
    assert Path("again.jsonl").read_bytes() == packed


def test_a_run_that_was_kept_aside_goes_in_as_it_was(records: Any, study: Path) -> None:
    records.pack(study, Path("r.jsonl"))
    packed, run = Path("r.jsonl").read_bytes(), Path("out/RTE/B/lr=0.2/seed-0")
    run.rename(run.with_name("seed-0.before"))
    run.mkdir()
    (run / "command.json").write_text(json.dumps({"words": ["fit"], "failed": "exit status 2"}))
    assert records.pack(study, Path("r.jsonl")) == "r.jsonl: 6 records (4 finished, 2 failed, 2 missing)"
    assert Path("r.jsonl").read_bytes() == packed


def test_what_is_finished_or_running_here_stays(records: Any, study: Path) -> None:
    records.pack(study, Path("r.jsonl"))
    mine = Path("out/RTE/B/lr=0.2/seed-0/metrics.json")
    mine.write_text(json.dumps({"state": "tested", "fit": {}, "test": {"test/accuracy": 1.0}}))
    kept, running = mine.read_text(), Path("out/RTE/B/lr=0.1/seed-0")
    shutil.rmtree(running)
    with FileLock("out/RTE/B/lr=0.1/seed-0.lock"):
        said = records.unpack(study, Path("r.jsonl"))
    assert said == "r.jsonl: 6 records (2 written, 3 finished here, 1 running here)"
    assert mine.read_text() == kept
    assert not list(running.iterdir())


def test_what_finished_here_by_other_words_is_kept_aside(records: Any, study: Path) -> None:
    records.pack(study, Path("r.jsonl"))
    shutil.rmtree("out")
    changed = {**STUDY, "every": {"set": {"x": 2}}}
    Path("t.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    study_command(["t.yaml"], COMMAND)
    mine = Path("out/RTE/B/lr=0.2/seed-0")
    (mine / "best.ckpt").write_text("trained")
    files = {path.name: path.read_text() for path in mine.iterdir() if path.is_file()}
    records.unpack(study, Path("r.jsonl"))
    before = mine.with_name("seed-0.before")
    assert {path.name: path.read_text() for path in before.iterdir() if path.is_file()} == files
    assert sorted(path.name for path in mine.iterdir()) == ["command.json", "metrics.json"]
    study_command(["t.yaml"], COMMAND)  # which takes it back
    assert (mine / "best.ckpt").read_text() == "trained"


def test_a_changed_study_takes_what_still_belongs_to_it(records: Any, study: Path) -> None:
    records.pack(study, Path("r.jsonl"))
    shutil.rmtree("out")
    axes = {"task": STUDY["axes"]["task"], "method": {"A": {"set": {"x": 1}}, "B": {"tune": {"lr": [0.1, 0.2]}}}}
    study.write_text(yaml.safe_dump({**STUDY, "axes": axes}, sort_keys=False))
    said = records.unpack(study, Path("r.jsonl"))
    assert said == "r.jsonl: 6 records (3 written, 2 of other settings, 1 of no run of this study)"
    assert sorted(path.parts[2] for path in Path("out").rglob("command.json")) == ["B"] * 3
    Path("out/RTE/B/lr=0.2/seed-0/command.json").write_text('{"words": []}')
    assert records.pack(study, Path("r.jsonl")) == "r.jsonl: 2 records (2 finished, 1 stale, 3 missing)"


def test_a_study_takes_the_runs_that_it_shares_with_another(records: Any, study: Path) -> None:
    """The other study has its own folder and names, and B's rates as rows. A's settings differ, and so do the seeds."""
    records.pack(study, Path("r.jsonl"))
    rows = {"low": {"set": {"lr": 0.1}}, "high": {"set": {"lr": 0.2}}, "A": {"set": {"x": 1}}}
    axes = {"set": {"RTE": {"metric": "accuracy"}}, "row": rows}
    other = {**STUDY, "folder": "other", "axes": axes, "columns": "set", "seeds": [1, 2]}
    Path("o.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    assert records.unpack(Path("o.yaml"), Path("r.jsonl")) == (
        "r.jsonl: 6 records (1 written, 1 of other settings, 4 of no run of this study)"
    )
    (made,) = Path("other").rglob("command.json")
    assert made.parent == Path("other/RTE/high/seed-1")
    metrics = json.loads((made.parent / "metrics.json").read_text())
    assert metrics == json.loads(Path("out/RTE/B/lr=0.2/seed-1/metrics.json").read_text())
    assert "out/RTE/B/lr=0.2/seed-1" in json.loads(made.read_text())["command"]
    # It counts for that study, and is packed again.
    assert records.pack(Path("o.yaml"), Path("o.jsonl")) == "o.jsonl: 1 records (1 finished, 5 missing)"


def test_the_order_of_overlays_and_the_last_value_count(records: Any) -> None:
    one = records._settings(
        ["fit", "--config=a", "--config=b", "--lr=1", "--x=2", "--lr=3", "--trainer.default_root_dir=o"]
    )
    assert one == records._settings(["fit", "--config=a", "--config=b", "--x=2", "--lr=3"])
    for other in (
        ["--config=b", "--config=a", "--x=2", "--lr=3"],
        ["--config=a", "--config=b", "--lr=3", "--x=2", "--lr=1"],
    ):
        assert one != records._settings(["fit", *other])


def test_a_record_whose_words_are_none_is_refused(records: Any, study: Path) -> None:
    Path("r.jsonl").write_text(json.dumps({"folder": "a", "command": {"words": [1]}, "metrics": None}) + "\n")
    with pytest.raises(GPartError, match="line 1 is no record of a run"):
        records.unpack(study, Path("r.jsonl"))


def test_a_broken_file_writes_nothing(records: Any, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.pack(study, Path("r.jsonl"))
    packed = Path("r.jsonl").read_text()
    shutil.rmtree("out")
    for line in ("{", "[]", '{"folder": "RTE/A/seed-0", "command": {}, "metrics": 1}'):
        Path("r.jsonl").write_text(f"{packed}{line}\n")
        with pytest.raises(GPartError, match=r"r\.jsonl, line 7 is no"):
            records.unpack(study, Path("r.jsonl"))
        assert not Path("out").exists()
    assert records.main(["pack", "s.yaml", "none.jsonl"]) == 1
    assert capsys.readouterr().err == "records.py: error: none of the 8 runs of s.yaml has been made here\n"
    assert not Path("none.jsonl").exists()
