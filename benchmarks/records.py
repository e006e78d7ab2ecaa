"""A study's raw data as one file: packs the records of its runs, and writes them back into folders.

    python benchmarks/records.py pack STUDY.yaml RECORDS.jsonl
    python benchmarks/records.py unpack STUDY.yaml RECORDS.jsonl    (of this study, or of one that has some of the same runs)

So that a study can be spread over days and machines, and what it measured be committed: after ``unpack`` the study goes
on from there (``gpart study STUDY.yaml``), and ``gpart study STUDY.yaml --table`` gives the same bytes. Files of several
machines may be joined by ``cat``.

Invariant: only a record whose command has the settings that the study has for that run goes in or out (the names of its
files and the order of its settings aside), and whose recipes are what they were, where it says what they were, and a run that is finished here is never written over; what finished here by other words is kept aside. A line is ``{"folder", "command", "metrics"}``: the run's folder below the study's,
what is in its command.json, and in its metrics.json (null for a run that failed before it wrote one).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.atomic import replacing
from gpart.studies.experiments.aside import can_take_back, make_room
from gpart.studies.experiments.outcome import read_object, read_outcome
from gpart.studies.experiments.plan import COMMAND_FILE, METRICS_FILE, Run, plan
from gpart.studies.experiments.recipes import OWN_FOLDER, difference
from gpart.studies.experiments.schema import read_study

PLACES = ("--trainer.default_root_dir", "--trainer.callbacks.path", OWN_FOLDER.partition("=")[0])
"""The settings of a run that only say where its files are."""


def main(words: Sequence[str] | None = None) -> int:
    """Does one of the two, and prints what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("records", type=Path, metavar="RECORDS.jsonl")
    asked = parser.parse_args(words)
    try:
        print((pack if asked.what == "pack" else unpack)(asked.study, asked.records))
    except GPartError as error:
        print(f"records.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def pack(study: Path, records: Path) -> str:
    """Writes the records of all runs that finished or failed, in the study's order; returns what it came to.

    Raises:
        GPartError: if the study is wrong, or nothing has been run.
    """
    runs = _runs(study)
    counts = dict.fromkeys(("finished", "failed", "stale", "missing"), 0)
    lines = []
    for folder, run in runs.items():
        state = read_outcome(run).state
        counts[state] += 1
        if state in ("finished", "failed"):
            place = run.before if can_take_back(run) else run.folder
            command, metrics = (read_object(place / name) for name in (COMMAND_FILE, METRICS_FILE))
            lines.append(json.dumps({"folder": folder, "command": command, "metrics": metrics}) + "\n")
    if not lines:
        raise GPartError(f"none of the {len(runs)} runs of {study} has been made here")
    with replacing(records) as file:
        file.write("".join(lines).encode())
    return f"{records}: {len(lines)} records ({_text(counts)})"


def unpack(study: Path, records: Path) -> str:
    """Writes the records into the folders of their runs; returns what it came to.

    Raises:
        GPartFileError: if there is no such file.
        GPartError: if the study is wrong, or a line is no record. Nothing has been written then. Also if a run's folder
            holds something else; the records before it have been written.
    """
    runs = _runs(study)
    alike = {_settings(run.words): run for run in runs.values()}
    counts = dict.fromkeys(
        ("written", "finished here", "running here", "of other settings", "of no run of this study"), 0
    )
    for record in _read(records):
        run = alike.get(_settings(record["command"].get("words") or ()))
        changed = run is not None and difference(_named(record, run), run.words)
        if run is not None and not changed:
            counts[_write(run, record)] += 1
        else:
            counts["of other settings" if changed or record["folder"] in runs else "of no run of this study"] += 1
    return f"{records}: {sum(counts.values())} records ({_text(counts)})"


def _settings(words: Sequence[str]) -> tuple[object, ...]:
    """What a command line comes to: its configurations in their order, and the last value of every other setting.

    The two settings that only say where the run's files are don't count.
    """
    configs = tuple(word for word in words if word.startswith("--config="))
    values: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("--config", *PLACES):
            values[name] = value
    return configs, frozenset(values.items())


def _runs(study: Path) -> dict[str, Run]:
    """All runs that a study may come to make, by their folders below its own."""
    read = read_study(study)
    runs = [run for cell in plan(read) for candidate in cell.candidates for run in candidate.runs]
    return {run.folder.relative_to(read.folder).as_posix(): run for run in runs}


def _read(records: Path) -> list[dict[str, Any]]:
    try:
        lines = records.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise GPartFileError(f"{records} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise GPartError(f"{records}, line {number} is no JSON: {error}") from error
        if not (
            isinstance(record, dict)
            and isinstance(record.get("folder"), str)
            and isinstance(record.get("command"), dict)
            and all(isinstance(word, str) for word in record["command"].get("words") or ())
            and isinstance(record.get("metrics"), (dict, type(None)))
        ):
            raise GPartError(f"{records}, line {number} is no record of a run: {line[:200]}")
        found.append(record)
    return found


def _write(run: Run, record: dict[str, Any]) -> str:
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        # The lock that a study holds while the run's process is at work in that folder.
        with FileLock(run.folder.with_name(f"{run.folder.name}.lock")).acquire(blocking=False):
            if read_outcome(run).state == "finished":
                return "finished here"
            make_room(run)  # what finished here by other words, of an older study, is kept beside it
            _put(run.folder / COMMAND_FILE, _named(record, run))  # the first, by which the folder is known as ours
            if record["metrics"] is not None:
                _put(run.folder / METRICS_FILE, record["metrics"])
    except Timeout:
        return "running here"
    return "written"


def _named(record: dict[str, Any], run: Run) -> dict[str, Any]:
    """A record's command with the words that the study looks for; its "command" is the line that made the run."""
    return {**record["command"], "words": list(run.words)}


def _put(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number)


if __name__ == "__main__":
    sys.exit(main())
