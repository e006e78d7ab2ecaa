"""The scripts beside the d-sweep's and the ablations' studies: the law of the rates, and the variances of seeds."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpart.errors import GPartError
from gpart.studies.experiments.plan import plan
from gpart.studies.experiments.schema import read_study

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, BENCHMARKS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rates_go_through_those_chosen_and_below_them_keep_the_step() -> None:
    rate_at, chosen = script("d-sweep/rates.py").rate_at, {100: 0.3, 7680: 0.03, 1_000_000: 1e-4}
    assert [rate_at(d, chosen) for d in chosen] == list(chosen.values())
    assert rate_at(4, chosen) * math.sqrt(4) == pytest.approx(0.3 * math.sqrt(100))
    middle = round(math.sqrt(100 * 7680))  # half way on the logarithmic axis
    assert rate_at(middle, chosen) == pytest.approx(math.sqrt(0.3 * 0.03), rel=2e-3)
    with pytest.raises(GPartError, match=r"d=1000001 is above 1000000"):
        rate_at(1_000_001, chosen)


@pytest.mark.parametrize("task", ["sst2", "digits"])
def test_the_rates_are_written_into_the_other_rows(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (BENCHMARKS / "d-sweep" / f"{task}.yaml").read_text()
    Path("study.yaml").write_text(re.sub(r"model\.lr: [0-9.e+-]+\}", "model.lr: 1.0}", text))
    rates = BENCHMARKS / "d-sweep" / f"{task}-rates.yaml"
    size = max(int(cell.labels["d"]) for cell in plan(read_study("study.yaml")) if cell.labels["d"].isdigit())
    chosen = {100: 0.1, 7680: 0.03, size: 3e-4}
    choices = [{"cell": f"x / {d}", "chosen": {"model.lr": rate}, "why": ""} for d, rate in chosen.items()]
    folder = read_study(rates).folder
    folder.mkdir(parents=True)
    probe = {"cell": "x / linear probe", "chosen": {"model.head_lr": 1.0}, "why": ""}
    (folder / "table.json").write_text(json.dumps({"choices": [*choices, probe]}))
    script("d-sweep/rates.py").main(str(rates), "study.yaml")
    found = {
        int(cell.labels["d"]): next(
            float(word[11:]) for word in cell.candidates[0].runs[0].words if "--model.lr=" in word
        )
        for cell in plan(read_study("study.yaml"))
        if cell.labels["d"].isdigit() and len(cell.candidates) == 1
    }
    assert sorted(found) == [1, 10, 1000, 23040, 100000, 500000]
    assert found[1] == 1.0
    assert all(found[low] > found[high] for low, high in zip(sorted(found), sorted(found)[1:], strict=False))
    assert capsys.readouterr().out.count("by the law") == 6
    (folder / "table.json").write_text(json.dumps({"choices": [{**choices[0], "chosen": None, "why": "it waits"}]}))
    with pytest.raises(GPartError, match=r"no rate is chosen for x / 100: it waits"):
        script("d-sweep/rates.py").main(str(rates), "study.yaml")


@pytest.mark.parametrize("task", ["sst2", "digits"])
def test_the_studies_of_the_rates_are_parts_of_the_sweeps(task: str) -> None:
    """The same folders and words: what is run for the rates is not run again."""
    part, whole = (plan(read_study(BENCHMARKS / "d-sweep" / f"{task}{end}.yaml")) for end in ("-rates", ""))
    of_whole = {cell.name: cell for cell in whole}
    assert len(part) == 5
    assert all(of_whole[cell.name] == cell for cell in part)


def test_the_variances_are_those_that_made_the_scores() -> None:
    components, rng = script("ablations/variance.py").components, np.random.default_rng(0)
    found = []
    for _ in range(400):
        partition, run, rest = 3 * rng.normal(size=(6, 1)), 2 * rng.normal(size=(1, 5)), rng.normal(size=(6, 5))
        found.append(list(components((70 + partition + run + rest).tolist()).values()))
    assert np.mean(found, axis=0) == pytest.approx([9, 4, 1], rel=0.1)
