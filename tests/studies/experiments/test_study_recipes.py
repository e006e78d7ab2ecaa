"""A run's identity: a recipe's content counts in place of its name, and records that know of no content stay valid."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpart.studies.experiments.cells import run_cells
from gpart.studies.experiments.outcome import read_outcome
from gpart.studies.experiments.plan import Run, plan
from gpart.studies.experiments.recipes import contents, difference
from gpart.studies.experiments.running import Event
from gpart.studies.experiments.schema import read_study

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, str(ROOT / "tests" / "helpers" / "study_run.py"))
STUDY: dict[str, Any] = {
    "folder": "out",
    "every": {"config": ["quickstart", "mine.yaml"]},
    "axes": {"task": {"RTE": {"metric": "accuracy"}}},
    "columns": "task",
}


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run of a study that is finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    Path("mine.yaml").write_text("model:\n  lr: 1\n")
    assert [event.kind for event in again()] == ["started", "finished"]
    return planned()


def planned(**changes: object) -> Run:
    Path("s.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return plan(read_study("s.yaml"))[0].candidates[0].runs[0]


def again(**changes: object) -> list[Event]:
    planned(**changes)
    events: list[Event] = []
    run_cells(plan(read_study("s.yaml")), events.append, COMMAND)
    return events


@pytest.mark.parametrize("ended", ["ok", "exit"])
def test_a_recipe_that_is_edited_while_the_run_is_under_way(
    one: Run, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    Path("mine.yaml").write_text("model:\n  lr: 2\n")
    edit = {"do": ended, "edit": {"mine.yaml": "model:\n  lr: 3\n"}}
    monkeypatch.setenv("PLAN", json.dumps([["seed_everything", edit]]))
    last = again()[-1]
    assert read_outcome(one).state == "stale"
    if ended == "ok":
        why = "the content of mine.yaml has changed; what had finished before is kept in out/RTE/seed-0.before"
        assert (last.kind, last.text) == ("finished", f"but the next study makes it again, as {why}")
    Path("mine.yaml").write_text("model:\n  lr: 2\n")  # the edit is undone
    assert read_outcome(one).state == ("finished" if ended == "ok" else "failed")
    if ended == "ok":
        assert [event.kind for event in again()] == ["kept"]


def test_a_recipe_whose_content_has_changed_is_run_again(one: Run) -> None:
    Path("mine.yaml").write_text("model:\n  lr: 2\n")
    assert (read_outcome(one).state, read_outcome(one).why) == ("stale", "the content of mine.yaml has changed")
    events = again()
    assert [event.kind for event in events] == ["started", "finished"]
    assert events[0].text.startswith("again, as the content of mine.yaml has changed; what had finished")
    assert [event.kind for event in again()] == ["kept"]


def test_a_recipe_of_another_name_with_the_same_content_is_the_same(one: Run) -> None:
    Path("mine.yaml").rename("yours.yaml")
    every = {"config": ["quickstart", "yours.yaml"]}
    assert [event.kind for event in again(every=every)] == ["kept"]
    Path("yours.yaml").write_text("model:\n  lr: 3\n")
    assert read_outcome(planned(every=every)).why == "the content of yours.yaml has changed"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("# why\n\nmodel:\n  lr: 1\n\n", True),
        ("model:\n  # deep\n  lr: 1\n", False),  # it may be a line of a prompt's text
        ("model:\n  lr: 1  # why\n", False),
        ("model:\n  lr: 1\nother: 1\n", False),
    ],
)
def test_lines_of_comment_are_no_content(one: Run, text: str, same: bool) -> None:
    Path("mine.yaml").write_text(text)
    assert (read_outcome(one).state == "finished") == same


def test_a_heading_inside_a_text_is_content(tmp_path: Path) -> None:
    file = tmp_path / "prompt.yaml"
    found = []
    for text in ("prompt: |\n  # Task\n  {text}\n", "prompt: |\n  # Question\n  {text}\n"):
        file.write_text(text)
        found.append(contents([f"--config={file}"]))
    assert found[0] != found[1]


def test_the_order_of_recipes_and_a_missing_one(one: Run) -> None:
    assert read_outcome(planned(every={"config": ["mine.yaml", "quickstart"]})).state == "stale"
    assert read_outcome(planned(every={"config": ["quickstart"]})).state == "stale"
    Path("mine.yaml").unlink()  # the table can be written where the recipe is not
    assert read_outcome(one).state == "finished"
    assert read_outcome(planned(every={"config": ["quickstart", "other.yaml"]})).state == "stale"


def test_a_run_of_before_goes_by_the_names_and_without_the_later_word(one: Run) -> None:
    """As every record that is committed: made without --own_folder, and knowing no contents."""
    file = one.folder / "command.json"
    before = {"words": [word for word in one.words if word != "--own_folder=true"]}
    assert len(before["words"]) == len(one.words) - 1
    file.write_text(json.dumps(before))
    assert read_outcome(one).state == "finished"
    assert read_outcome(planned(every={"config": ["quickstart", "yours.yaml"]})).state == "stale"
    file.write_text(json.dumps({"words": [*before["words"], "--more"]}))
    assert read_outcome(one).state == "stale"


@pytest.mark.parametrize("words", [None, "fit", {"words": 1}])
def test_what_is_no_command_line_is_another(words: object) -> None:
    assert difference({"words": words}, ["fit"]) == "it was run with other words"


@pytest.fixture
def records() -> Any:
    spec = importlib.util.spec_from_file_location("records", ROOT / "benchmarks" / "records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("study", ["methods/language", "d-sweep/digits"])
def test_committed_records_are_found_as_finished(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    file = ROOT / "benchmarks" / f"{study}.yaml"
    monkeypatch.chdir(tmp_path)
    records.unpack(file, file.with_suffix(".jsonl"))
    runs = [run for cell in plan(read_study(file)) for one in cell.candidates for run in one.runs]
    states = [read_outcome(run).state for run in runs]
    lines = file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert states.count("finished") == len(lines) > 0  # as many as are committed, which grow
    assert "stale" not in states


@pytest.mark.parametrize("damage", [{"words": [1]}, {"recipes": 3}, {"recipes": ["a"]}, {"recipes": ["a"] * 3}])
def test_a_damaged_command_file_is_a_run_to_make_again(one: Run, damage: dict[str, Any]) -> None:
    file = one.folder / "command.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert read_outcome(one).state == "stale"
    assert ("its command.json is damaged" in read_outcome(one).why) == ("recipes" in damage)
    assert [event.kind for event in again()] == ["started", "finished"]


def test_a_record_of_another_content_is_not_unpacked(records: Any, one: Run) -> None:
    assert "1 finished" in records.pack(Path("s.yaml"), Path("r.jsonl"))
    assert records.unpack(Path("s.yaml"), Path("r.jsonl")).endswith("(1 finished here)")
    Path("mine.yaml").write_text("model:\n  lr: 2\n")
    assert records.unpack(Path("s.yaml"), Path("r.jsonl")).endswith("(1 of other settings)")
