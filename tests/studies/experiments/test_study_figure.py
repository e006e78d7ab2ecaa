"""A study's figure: its points, bands and lines are the table's, on an axis of the rows' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpart.cli import main
from gpart.studies.experiments.figure import curve_figure, spreads
from gpart.studies.experiments.plan import plan
from gpart.studies.experiments.results import Results, collect
from gpart.studies.experiments.schema import read_study

SCORES = {"1": [0.5, 0.52, 0.6], "1000": [0.8, 0.84, 0.82], "10": [0.7, 0.7, 0.76], "probe": [0.5, 0.55, 0.51]}
STUDY: dict[str, Any] = {
    "folder": "out",
    "axes": {"task": {"SST-2": {"metric": "accuracy"}}, "d": {**dict.fromkeys(SCORES), "5": None}},
    "columns": "task",
    "seeds": [0, 1, 2],
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """A study of which the row 5 has not been run."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    study = read_study("s.yaml")
    cells = plan(study)
    for cell in cells:
        for run, score in zip(cell.candidates[0].runs, SCORES.get(cell.labels["d"], ()), strict=False):
            run.folder.mkdir(parents=True)
            (run.folder / "command.json").write_text(json.dumps({"words": list(run.words)}))
            metrics = {"state": "tested", "test": {"test/accuracy": score}}
            (run.folder / "metrics.json").write_text(json.dumps(metrics))
    return collect(study, cells)


def test_the_points_and_the_band_are_the_tables_in_the_order_of_the_numbers(results: Results) -> None:
    figure = curve_figure(results)
    (panel,) = figure.axes
    curve, *rest = panel.lines
    assert list(curve.get_xdata()) == [1, 10, 1000]
    assert list(curve.get_ydata()) == pytest.approx([52, 70, 82])  # the medians
    band = panel.collections[0].get_paths()[0].vertices
    for number, scores in ((1, SCORES["1"]), (10, SCORES["10"]), (1000, SCORES["1000"])):
        there = [y for x, y in band if x == number]
        assert (min(there), max(there)) == pytest.approx((100 * min(scores), 100 * max(scores)))
    dots = sorted(y for line in rest if len(line.get_xdata()) == 3 for y in line.get_ydata())
    assert dots == pytest.approx(sorted(100 * score for key in ("1", "10", "1000") for score in SCORES[key]))
    assert panel.get_xscale() == "log"
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_title()) == ("d", "accuracy x 100", "SST-2")


def test_a_row_that_is_no_number_is_a_line(results: Results) -> None:
    (panel,) = curve_figure(results).axes
    (line,) = [line for line in panel.lines if str(line.get_label()).startswith("probe")]
    assert list(line.get_ydata()) == pytest.approx([51, 51])
    assert spreads(results, "SST-2")["probe"].seeds == pytest.approx((50, 55, 51))
    (box,) = panel.patches
    assert (box.get_y(), box.get_y() + box.get_height()) == pytest.approx((50, 55))


def test_the_command_writes_it_beside_the_table(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "s.yaml", "--figure"]) == 0
    assert capsys.readouterr().out.endswith("out/table.json, out/figure.png\n")
    assert Path("out/figure.png").read_bytes().startswith(b"\x89PNG")
    assert main(["study", "s.yaml", "--figure", "--shard", "1/2"]) != 0
    assert "--figure is of the whole study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"d": {1: None, "probe": None}}, "d with 1"),
        ({"d": {1: None, 2: None}, "e": {"a": None}}, "d with 2, e with 0"),
        ({}, "none"),
    ],
)
def test_a_study_without_numbers_is_refused(
    results: Results, axes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("o.yaml").write_text(yaml.safe_dump({**STUDY, "axes": {"task": STUDY["axes"]["task"], **axes}}))
    assert main(["study", "o.yaml", "--figure"]) != 0
    assert f"this one has {said}" in capsys.readouterr().err
