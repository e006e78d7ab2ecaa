"""A study's table from its runs' folders, and the command around it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpart.cli import main
from gpart.cli.study import study_command
from gpart.studies.experiments.latex import latex
from gpart.studies.experiments.listed import csv_text, json_text
from gpart.studies.experiments.plan import Cell, Run, plan
from gpart.studies.experiments.results import Results, collect
from gpart.studies.experiments.schema import read_study
from gpart.studies.experiments.tables import markdown

COMMAND = (sys.executable, str(Path(__file__).parents[2] / "helpers" / "study_run.py"))

STUDY: dict[str, Any] = {
    "folder": "out",
    "axes": {
        "task": {"RTE": {"metric": "accuracy"}, "CoLA": {"metric": "f1"}},
        "method": {"A": None, "B|b": {"tune": {"lr": [0.1, 0.2]}}},
    },
    "columns": "task",
    "seeds": [0, 1, 2],
    "paper": {"A": {"RTE": 78.3, "Avg": 83.75}},
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    return tmp_path


def cells_of(**changes: object) -> tuple[Any, list[Cell]]:
    Path("s.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    study = read_study("s.yaml")
    return study, plan(study)


def put(run: Run, score: float | None, val: float = 0.5, **over: Any) -> None:
    """A finished run's folder, as the process leaves it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "command.json").write_text(json.dumps({"words": list(run.words), **over.pop("command", {})}))
    content = {
        "state": "tested",
        "fit": {"seconds": 2.0, "epochs": 1, "steps": 5, "best_score": val},
        "test": {f"test/{run.metric}": score, "test/loss": 1.0},
        "parameters": {"trainable": 1100, "head": 100},
        "kept_bytes": 4400,
        "peak_memory_bytes": 5_000_000,
        "device": "cpu",
        "versions": {"torch": "2.0"},
    }
    (run.folder / "metrics.json").write_text(json.dumps(content | over))


def fill(cells: list[Cell], scores: dict[str, list[float]]) -> None:
    """Puts the scores of each cell's seeds into its first candidate; the other candidates get 0.99 and a lower val."""
    for cell in cells:
        for run, score in zip(cell.candidates[0].runs, scores.get(cell.name, []), strict=False):
            put(run, score, 0.7)
        for candidate in cell.candidates[1:] if cell.name in scores else ():
            put(candidate.runs[0], 0.99, 0.6, fit={"seconds": 999.0, "best_score": 0.6})


def results_of(scores: dict[str, list[float]], **changes: object) -> Results:
    study, cells = cells_of(**changes)
    fill(cells, scores)
    return collect(study, cells)


FULL = {
    "RTE / A": [0.5, 0.7, 0.6],
    "CoLA / A": [0.1, 0.2, 0.9],
    "RTE / B|b": [0.6, 0.6, 0.1],
    "CoLA / B|b": [0.3, 0.3, 0.3],
}


def table(text: str) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_medians_deviations_bold_and_the_paper() -> None:
    text = markdown(results_of(FULL))
    assert table(text)[:4] == [
        ["method", "RTE", "CoLA", "Avg.", "trainable (no head)", "adapter bytes", "train s", "peak MB"],
        ["---", "---:", "---:", "---:", "---:", "---:", "---:", "---:"],
        # statistics.stdev of 50, 70, 60 is 10; of 10, 20, 90 is 43.59; 28.87 of 60, 60, 10
        [
            "A",
            "**60.0 ± 10.0** (paper 78.3)",
            "20.0 ± 43.6",
            "40.0 (paper 83.75)",
            "1,000",
            "4,400",
            "2.0",
            "5",
        ],
        ["B\\|b", "**60.0 ± 28.9**", "**30.0 ± 0.0**", "**45.0**", "1,000", "4,400", "2.0", "5"],
    ]
    assert "Median ± standard deviation (n - 1) of the test metric times 100; seeds 0, 1, 2." in text
    assert "Device: cpu. Versions: torch 2.0." in text
    assert table(text)[4:] == [
        ["cell", "chosen", "validation score", "of"],
        ["---", "---:", "---:", "---:"],
        ["RTE / B\\|b", "lr=0.1 (an end of its grid)", "0.7", "lr=0.1: 0.7; lr=0.2: 0.6"],
        ["CoLA / B\\|b", "lr=0.1 (an end of its grid)", "0.7", "lr=0.1: 0.7; lr=0.2: 0.6"],
    ]
    assert "Missing" not in text
    assert "Failed" not in text


def test_differences_are_paired_by_seed() -> None:
    """B|b's scores on RTE spread as A's do, and are 10, 11, 12 above seed by seed; on CoLA their order is not clear."""
    scores = FULL | {"RTE / B|b": [0.60, 0.81, 0.72], "CoLA / B|b": [0.2, 0.1, 0.9]}
    results = results_of(scores, baseline="A")
    a, b = results.rows
    assert a.differences == {}
    rte, cola = b.differences["RTE"], b.differences["CoLA"]
    # Student's t for two degrees of freedom is 4.3027; the deviation of 10, 11, 12 is 1.
    assert (rte.mean, rte.low, rte.high) == pytest.approx((11.0, 11 - 4.3027 / 3**0.5, 11 + 4.3027 / 3**0.5), abs=1e-3)
    assert (rte.ordered, rte.count, cola.ordered) == ("above", 3, None)
    text = markdown(results)
    assert "| B\\|b | **+11.0 [+8.5, +13.5]** | +0.0 [-24.8, +24.8] |" in text
    assert "Paired differences to A, seed by seed: the mean and its 95% Student interval" in text
    rows = json.loads(json_text(results))["rows"]
    assert rows[0]["differences"] == {}
    assert rows[1]["differences"]["RTE"]["ordered"] == "above"


def test_a_difference_needs_the_same_seeds() -> None:
    scores = {name: values[:1] for name, values in FULL.items()} | {"RTE / B|b": []}
    row = results_of(scores, baseline="A").rows[1]
    assert row.differences["RTE"] is None
    one = row.differences["CoLA"]
    assert (one.mean, one.low, one.ordered, one.count) == (pytest.approx(20.0), None, None, 1)


def test_a_choice_at_an_end_of_its_grid_is_said() -> None:
    study, cells = cells_of(
        axes={"task": {"RTE": {"metric": "a"}}, "method": {"B": {"tune": {"lr": [1, 2, 3]}}}}, paper=None
    )
    for best, end in ((0, True), (1, False), (2, True)):
        for at, candidate in enumerate(cells[0].candidates):
            for run in candidate.runs:
                put(run, 0.5, 0.9 if at == best else 0.1)
        results = collect(study, cells)
        assert results.choices[0].at_an_end is end
        assert ("(an end of its grid)" in markdown(results)) is end


@pytest.mark.parametrize(
    ("values", "best", "end"),
    [
        (["1e-3", "1e-2", 0.1], 0, True),  # YAML reads 1e-3 as a text
        (["1e-3", "1e-2", 0.1], 1, False),
        (["1e-3", "1e-2", 0.1], 2, True),
        (["2", "10", "3"], 0, True),
        (["2", "10", "3"], 2, False),  # as texts it would be the highest
        (["nan", 1, 2], 2, False),
        (["cosine", "linear"], 0, False),
        ([[1], [2]], 0, False),
        ([True, False], 0, False),
        (["1e-3"], 0, False),
    ],
)
def test_rates_that_are_texts_have_ends_too(values: list[Any], best: int, end: bool) -> None:
    axes = {"task": {"RTE": {"metric": "a"}}, "method": {"B": {"tune": {"lr": values}}}}
    study, cells = cells_of(axes=axes, paper=None, seeds=[0])
    for at, candidate in enumerate(cells[0].candidates):
        put(candidate.runs[0], 0.5, 0.9 if at == best else 0.1)
    [choice] = collect(study, cells).choices
    assert choice.at_an_end is end
    assert choice.chosen is not None
    assert values[best] not in ("1e-3", "2") or choice.chosen.text == f"lr={values[best]}"


def test_the_choice_shows_the_mean_of_the_seeds_that_chose() -> None:
    study, cells = cells_of(
        axes={"task": {"RTE": {"metric": "a"}}, "method": {"B": {"tune": {"lr": [1, 2]}}}}, paper=None, tune_seeds=2
    )
    for candidate, vals in zip(cells[0].candidates, ([0.4, 0.6], [0.9, 0.3]), strict=True):
        for run, val in zip(candidate.runs, vals, strict=False):
            put(run, 0.5, val)
    results = collect(study, cells)
    assert dict(results.choices[0].scores) == {"lr=1": 0.5, "lr=2": pytest.approx(0.6)}
    assert [(record.run.seed, record.chosen) for record in results.records if record.chosen] == [
        (0, True),
        (1, True),
        (2, True),
    ]
    assert results.missing == 1
    assert "Chosen by the mean validation score of seeds 0, 1:" in markdown(results)


@pytest.mark.parametrize(
    ("later", "chosen"),
    [([0.9583333730697632, 0.9444444179534912], 0), ([0.9583333730697632, 0.9444543123245239], 1)],
    ids=["the rounding of float32", "more than that"],
)
def test_equal_means_choose_the_first_candidate(later: list[float], chosen: int) -> None:
    """Float32's 69/72 and 68/72 one way round, and the other with one of them off by a rounding, have the same mean."""
    study, cells = cells_of(
        axes={"task": {"RTE": {"metric": "a"}}, "method": {"B": {"tune": {"lr": [1, 2]}}}}, paper=None, tune_seeds=2
    )
    for candidate, scores in zip(cells[0].candidates, [[0.9444444179534912, 0.9583333134651184], later], strict=True):
        for run, score in zip(candidate.runs, scores, strict=False):
            put(run, 0.5, score)
    assert collect(study, cells).choices[0].chosen == cells[0].candidates[chosen]


def test_the_mean_and_another_scale() -> None:
    rows = results_of(FULL, statistic="mean", scale=1).rows
    assert rows[0].scores["CoLA"].value == pytest.approx(0.4)
    assert rows[0].scores["CoLA"].deviation == pytest.approx(0.43589, abs=1e-5)
    assert rows[0].average == pytest.approx(0.5)


def test_both_deviations_are_named() -> None:
    """np.std of three numbers divides by 3, statistics.stdev by 2: 8.165 and 10 of 50, 70, 60."""
    said = "The deviation that divides by n, as the paper's code does, is 0.816 times that of 3 seeds."
    assert said in markdown(results_of(FULL))
    assert "is 0.707 times that of 2 seeds." in markdown(results_of(FULL, seeds=[0, 1]))
    assert "divides by n" not in markdown(results_of(FULL, seeds=[0]))


def test_one_seed_has_no_deviation() -> None:
    text = markdown(results_of(FULL, seeds=[0]))
    assert table(text)[2][1:4] == ["50.0 (paper 78.3)", "10.0", "30.0 (paper 83.75)"]
    assert "Score of the test metric times 100; seeds 0." in text


def test_what_looks_equal_is_bold_together() -> None:
    text = markdown(results_of({"RTE / A": [0.60004] * 3, "RTE / B|b": [0.59996] * 3}))
    assert [line[1] for line in table(text)[2:4]] == ["**60.0 ± 0.0** (paper 78.3)", "**60.0 ± 0.0**"]


def tasks(rte: dict[str, str], cola: dict[str, str]) -> dict[str, Any]:
    return STUDY["axes"] | {"task": {"RTE": {"metric": "accuracy"} | rte, "CoLA": {"metric": "f1"} | cola}}


@pytest.mark.parametrize(
    ("rte", "cola", "bold", "said"),
    [
        ({}, {"mode": "max"}, ["B", "B", "B"], "Bold: the best of a column. "),
        ({"mode": "min"}, {"mode": "min"}, ["A", "A", "A"], "a column (lower is better: RTE, CoLA). "),
        ({"mode": "min"}, {}, ["A", "B", ""], "a column (lower is better: RTE). "),  # no best of such an average
    ],
)
def test_the_best_of_a_column_goes_by_its_mode(
    rte: dict[str, str], cola: dict[str, str], bold: list[str], said: str
) -> None:
    scores = {"RTE / A": [0.1] * 3, "CoLA / A": [0.2] * 3, "RTE / B|b": [0.3] * 3, "CoLA / B|b": [0.4] * 3}
    results = results_of(scores, axes=tasks(rte, cola), paper=None)
    text = markdown(results)
    lines = dict(zip("AB", table(text)[2:4], strict=True))
    assert ["".join(row for row in "AB" if lines[row][at].startswith("**")) for at in (1, 2, 3)] == bold
    assert said in text
    assert latex(results).count(r"\textbf{") == sum(map(len, bold))


def test_missing_runs_are_said_and_not_filled_in() -> None:
    results = results_of({"RTE / A": [0.5, 0.7]})
    # One seed of RTE / A, three of CoLA / A, and of each tuned cell two candidates and two seeds.
    assert results.missing == 1 + 3 + 2 * (2 + 2)
    text = markdown(results)
    assert table(text)[2][1:4] == ["**60.0 ± 14.1** [2 of 3 seeds] (paper 78.3)", "-", "- (paper 83.75)"]
    assert table(text)[3][1:] == ["-"] * 7
    assert "\nMissing: 12 runs." in text
    assert ["RTE / B\\|b", "-", "the choice waits for 2 of 2 candidates", "lr=0.1: none; lr=0.2: none"] in table(text)


def test_failed_and_unscored_runs_are_named_and_stale_ones_do_not_count() -> None:
    study, cells = cells_of(axes={"task": {"RTE": {"metric": "accuracy"}}}, paper=None, seeds=[0, 1, 2, 3])
    runs = cells[0].candidates[0].runs
    put(runs[0], 0.4, command={"failed": "exit status 1; boom (log: there)"})
    put(runs[1], None, test={"test/loss": 1.0})
    put(runs[3], None)
    put(runs[2], 0.4, command={"words": ["fit"]})
    results = collect(study, cells)
    gave = "metric 'accuracy': its test gave"
    assert results.problems == (
        "RTE / seed 0: exit status 1; boom (log: there)",
        f"RTE / seed 1: {gave} no test/accuracy or accuracy but test/loss (log: out/RTE/seed-1/log.txt)",
        f"RTE / seed 3: {gave} test/accuracy None, which is no number (log: out/RTE/seed-3/log.txt)",
    )
    assert results.missing == 1
    text = markdown(results)
    assert table(text)[2][:2] == ["s", "-"]
    assert "Failed:\n\n- RTE / seed 0: exit status 1; boom" in text


def test_a_choice_does_not_rest_on_a_run_of_other_words() -> None:
    study, cells = cells_of()
    fill(cells, FULL)
    put(cells[1].candidates[1].runs[0], 0.5, 0.6, command={"words": ["fit"]})
    results = collect(study, cells)
    assert results.choices[0].chosen is None
    assert results.choices[0].why == "the choice waits for 1 of 2 candidates"
    assert results.rows[1].scores["RTE"] is None
    assert results.missing == 1 + 2


def test_a_score_that_is_not_finite_is_shown_and_never_best() -> None:
    results = results_of({"RTE / A": [float("nan"), 0.9, 0.9], "RTE / B|b": [0.1, 0.1, 0.1]})
    assert [line[1] for line in table(markdown(results))[2:4]] == ["nan (paper 78.3)", "**10.0 ± 0.0**"]


def test_costs_are_of_the_runs_that_count() -> None:
    study, cells = cells_of(
        axes={"task": {"RTE": {"metric": "a"}}, "method": {"A": {"tune": {"lr": [1, 2]}}}}, paper=None
    )
    first, second = cells[0].candidates
    put(first.runs[0], 0.5, 0.1, peak_memory_bytes=9e9, kept_bytes=1)
    for run, seconds, peak in zip(second.runs, (1.0, 9.0, 3.0), (7e6, 8e6, None), strict=True):
        fit = {"seconds": seconds, "best_score": 0.2}
        put(run, 0.5, fit=fit, peak_memory_bytes=peak, parameters={"trainable": 500, "head": 0})
    row = collect(study, cells).rows[0]
    assert (row.parameters, row.kept_bytes, row.seconds, row.peak_bytes) == (500, 4400, 3.0, 8e6)


def test_every_run_is_in_csv_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", json.dumps([["lr=0.2", {"val": 0.9}], ["RTE&A&seed-2", {"test": float("nan")}]]))
    axes = STUDY["axes"] | {"task": {"RTE": {"metric": "accuracy"}}}
    cells_of(axes=axes, paper=None)
    assert study_command(["s.yaml"], COMMAND) == 0
    with open("out/table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["tuned.lr"], line["seed"], line["chosen"]) for line in lines] == [
        ("A", "", "0", "True"),
        ("A", "", "1", "True"),
        ("A", "", "2", "True"),
        ("B|b", "0.1", "0", "False"),
        ("B|b", "0.2", "0", "True"),
        ("B|b", "0.2", "1", "True"),
        ("B|b", "0.2", "2", "True"),
    ]
    assert lines[4] == {
        "run": "RTE / B|b / lr=0.2 / seed 0",
        "task": "RTE",
        "method": "B|b",
        "tuned.lr": "0.2",
        "seed": "0",
        "chosen": "True",
        "state": "finished",
        "metric": "accuracy",
        "score": "0.5",
        "val_score": "0.9",
        "seconds": "2.0",
        "epochs": "2",
        "steps": "10",
        "trainable": "1100",
        "head": "100",
        "kept_bytes": "4400",
        "peak_memory_bytes": "5000000",
        "device": "cpu",
        "test/accuracy": "0.5",
        "test/f1": "0.25",
    }
    content = json.loads(Path("out/table.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][1]["scores"]["RTE"] == {"value": 50.0, "std": 0.0, "runs": 3}
    assert content["rows"][0]["scores"]["RTE"] == {"value": None, "std": None, "runs": 3}
    assert content["choices"] == [
        {
            "cell": "RTE / B|b",
            "chosen": {"lr": 0.2},
            "why": "",
            "at_an_end": True,
            "validation_scores": {"lr=0.1": 0.5, "lr=0.2": 0.9},
        }
    ]
    run = content["runs"][4]
    assert (run["labels"], run["tuned"], run["seed"]) == ({"task": "RTE", "method": "B|b"}, {"lr": 0.2}, 0)
    assert (run["score"], run["val_score"], run["chosen"]) == (0.5, 0.9, True)
    assert run["metrics"]["versions"] == {"gpart": "0.1.0", "torch": "2.0"}

    before = {ending: Path(f"out/table.{ending}").read_bytes() for ending in ("md", "tex", "csv", "json")}
    Path("out/table.md").unlink()
    assert study_command(["s.yaml", "--table"], ("no/such/program",)) == 0
    assert {ending: Path(f"out/table.{ending}").read_bytes() for ending in before} == before


def test_a_metric_is_looked_up_under_test_else_by_its_own_name() -> None:
    study, cells = cells_of(
        axes={"task": {"RTE": {"metric": "test_acc"}, "CoLA": {"metric": "score"}}}, paper=None, seeds=[0], scale=1
    )
    rte, cola = (cell.candidates[0].runs[0] for cell in cells)
    put(rte, None, test={"test_acc": 0.25, "seconds": 7.0})
    put(cola, None, test={"test/score": 3.0, "score": 4.0})
    results = collect(study, cells)
    assert results.problems == ()
    assert [score.value for score in results.rows[0].scores.values() if score] == [0.25, 3.0]
    lines = list(csv.DictReader(csv_text(results).splitlines()))
    # A metric that is called as a column of every study hides none.
    assert [(line["score"], line["seconds"], line["test.seconds"]) for line in lines] == [
        ("0.25", "2.0", "7.0"),
        ("3.0", "2.0", ""),
    ]
    assert (lines[1]["test/score"], lines[1]["test.score"]) == ("3.0", "4.0")
    put(rte, None, test={"test_acc": None})
    assert "its test gave test_acc None, which is no number" in collect(study, cells).problems[0]
    put(rte, None, test={})
    assert "its test gave no test/test_acc or test_acc but nothing" in collect(study, cells).problems[0]


def test_shards_and_the_table_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    cells_of(axes=STUDY["axes"] | {"task": {"RTE": {"metric": "accuracy"}}}, paper=None)
    assert study_command(["s.yaml", "--shard", "2/2"], COMMAND) == 0
    out = capsys.readouterr().out
    assert "Missing: 3 runs." in out
    assert "finished  RTE / B|b / lr=0.1 / seed 0\n" in out
    assert "/ A / seed" not in out
    assert study_command(["s.yaml", "--shard", "1/2"], COMMAND) == 0
    out = capsys.readouterr().out
    assert "Missing" not in out
    assert Path("out/table.md").read_text() in out


def test_a_failed_run_makes_the_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PLAN", json.dumps([["seed_everything=1", {"do": "exit"}]]))
    cells_of(axes={"task": {"RTE": {"metric": "accuracy"}}}, paper=None)
    assert study_command(["s.yaml"], COMMAND) == 1
    line = "exit status 2; gpart: error: d must be 1 or more (log: out/RTE/seed-1/log.txt)"
    out = capsys.readouterr().out
    assert f"failed    RTE / seed 1: {line}\n" in out
    assert f"Failed:\n\n- RTE / seed 1: {line}" in out
    # To write the table is another question, whose answer is there.
    assert study_command(["s.yaml", "--table"], COMMAND) == 0


def test_dry_run_lists_and_starts_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, cells = cells_of()
    put(cells[0].candidates[0].runs[0], 0.5)
    put(cells[0].candidates[0].runs[1], 0.5, command={"words": ["fit"]})
    before = sorted(work.rglob("*"))
    assert study_command(["s.yaml", "--dry-run"], ("no/such/program",)) == 0
    out = capsys.readouterr().out
    assert sorted(work.rglob("*")) == before
    lines = out.splitlines()
    assert lines[0] == "finished  RTE / A / seed 0"
    assert lines[2] == "to run    RTE / A / seed 1: it was run with other words"
    assert lines[1].strip().startswith("gpart fit --seed_everything=0 --trainer.default_root_dir=out/RTE/A/seed-0 ")
    assert "waits     RTE / B|b / seed 2: the choice waits for 2 of 2 candidates" in lines
    assert lines[-1] == "1 finished, 9 to run, 4 waits"
    assert study_command(["s.yaml", "--dry-run", "--shard=2/2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 to run, 4 waits"
    fill(cells, {"RTE / B|b": [0.5]})
    assert study_command(["s.yaml", "--dry-run", "--shard=2/4"]) == 0
    out = capsys.readouterr().out
    assert "to run    RTE / B|b / lr=0.1 / seed 1\n" in out
    assert "waits" not in out


def test_dry_run_says_what_is_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    _, cells = cells_of(axes={"task": {"RTE": {"metric": "accuracy"}}}, paper=None, seeds=[0])
    run = cells[0].candidates[0].runs[0]
    put(run, 0.5)
    run.folder.rename(run.before)
    put(run, 0.5, command={"words": ["fit"], "failed": "exit status 2"})
    assert study_command(["s.yaml", "--dry-run"], ("no/such/program",)) == 0
    out = capsys.readouterr().out
    assert out.startswith("finished  RTE / seed 0: it is taken back from out/RTE/seed-0.before\n")
    assert out.endswith("1 finished\n")


def test_a_run_that_was_kept_aside_counts_in_the_table_that_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _, cells = cells_of(axes={"task": {"RTE": {"metric": "accuracy"}}}, paper=None, seeds=[0])
    run = cells[0].candidates[0].runs[0]
    put(run, 0.5)
    run.folder.rename(run.before)
    put(run, 0.75, command={"words": ["fit"]})
    assert study_command(["s.yaml", "--table"], ("no/such/program",)) == 0
    assert table(Path("out/table.md").read_text())[2][1] == "**50.0**"
    assert run.before.exists()
    put(run, 0.75)  # what has finished in its own folder goes before
    assert study_command(["s.yaml", "--table"], ("no/such/program",)) == 0
    assert table(Path("out/table.md").read_text())[2][1] == "**75.0**"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch.yaml"], "no config file and no recipe 'nosuch.yaml'"),
        (["bad.yaml"], "bad.yaml is no YAML"),
        (["s.yaml", "--shard=5/4"], "shard 5/4"),
        (["s.yaml", "--shard=one"], "--shard one: it is I/N"),
        (["none.yaml"], "RTE / A: no config file and no recipe 'nosuch'; close are"),
        (["none.yaml", "--dry-run"], "RTE / A: no config file and no recipe 'nosuch'; close are"),
        (["none.yaml", "--dry-run", "--ray", "local"], "RTE / A: no config file and no recipe 'nosuch'; close are"),
        (["s.yaml", "--ray", "--gpus-per-run=x"], "--gpus-per-run: 'x' is no number from 0 on"),
        (["s.yaml", "--ray", "--cpus-per-run=-1"], "--cpus-per-run: '-1' is no number from 0 on"),
        (["s.yaml", "--shard=1/2", "--table"], "--table is of the whole study; leave --shard 1/2 out"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    axes = {"task": {"RTE": {"metric": "accuracy"}}, "method": {"A": {"config": ["quickstart", "nosuch"]}}}
    cells_of(axes=axes, paper=None)
    Path("s.yaml").rename("none.yaml")
    cells_of()
    Path("bad.yaml").write_text("axes: [1\n")
    assert main(["study", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gpart: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_recipe_is_no_matter_where_nothing_runs_or_other_machines_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"task": {"RTE": {"metric": "accuracy", "config": "/elsewhere/mine.yaml"}}}
    _, cells = cells_of(axes=axes, paper=None, seeds=[0])
    put(cells[0].candidates[0].runs[0], 0.5)
    assert study_command(["s.yaml", "--table"]) == 0
    assert "| s | **50.0** |" in capsys.readouterr().out
    assert study_command(["s.yaml", "--dry-run", "--ray", "local"]) == 0
    assert main(["study", "s.yaml"]) == 2
    assert "RTE: no config file and no recipe '/elsewhere/mine.yaml'" in capsys.readouterr().err


def test_help_shows_the_file_and_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["study", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "sbatch --array=1-8 --gpus=1 --wrap 'gpart study STUDY --shard $SLURM_ARRAY_TASK_ID/8'" in out
    # The file it shows is one that is read.
    text = out.split("a study's file:\n", 1)[1].split("\n\n", 1)[0]
    Path("help.yaml").write_text("\n".join(line[2:] for line in text.splitlines()))
    assert [cell.name for cell in plan(read_study("help.yaml"))][:2] == ["RTE / GPart", "RTE / LoRA"]
