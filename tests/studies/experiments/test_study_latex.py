"""A study's table in LaTeX: the numbers of table.md, whole rows, and no text that is taken for a command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpart.cli.study import study_command
from gpart.studies.experiments.latex import escape, latex
from gpart.studies.experiments.paired import Difference
from gpart.studies.experiments.places import COSTS
from gpart.studies.experiments.results import Record, Results, Row, Score
from gpart.studies.experiments.schema import read_study

CELL = re.compile(r"(?<!\\)&")
"""What parts two columns: an ampersand without a backslash before it."""

HOSTILE = "[50 %] of_a & b #1 $x$ {y} ~^\\ <|> *±"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def results_of(rows: list[Row], **more: Any) -> Results:
    """The results of a study with these rows, without a run's folder."""
    content = {
        "axes": {
            "task": {"RTE": {"metric": "accuracy"}, "Co_LA": {"metric": "f1"}},
            "method": {row.label: None for row in rows},
        },
        "columns": "task",
        "seeds": [0, 1, 2],
        **more.pop("study", {}),
    }
    Path("my_study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    runs: tuple[Record, ...] = ()
    found: dict[str, Any] = {"missing": 0, "problems": (), **more}
    return Results(read_study("my_study.yaml"), tuple(rows), (), runs, **found)


def row(label: str, rte: Score | None, cola: Score | None, average: float | None = None, **more: Any) -> Row:
    costs: dict[str, Any] = {"parameters": 1000.0, "kept_bytes": 4400.0, "seconds": 2.0, "peak_bytes": 5e6, **more}
    return Row(label, {"RTE": rte, "Co_LA": cola}, costs.pop("differences", {}), average, **costs)


ROWS = [
    row("GPart", Score(60.04, 10.0, 3), Score(-5.0, 21.24, 2), 27.5),
    row(HOSTILE, Score(59.96, None, 1), None, parameters=None, kept_bytes=None, seconds=None, peak_bytes=None),
]


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the tables."""
    lines = [line.strip() for line in text.splitlines() if line.endswith("\\\\")]
    return [[cell.strip() for cell in CELL.split(line[:-2])] for line in lines]


def test_the_rows_are_those_of_the_study() -> None:
    found = rows_of(latex(results_of(ROWS, study={"paper": {"GPart": {"RTE": 78.3, "Co_LA": -1.5}}})))
    assert found == [
        ["method", "RTE", r"Co\_LA", "Avg.", *COSTS],
        [
            "GPart",
            r"\textbf{60.0} $\pm$ 10.0 (paper 78.3)",
            r"\textbf{$-$5.0} $\pm$ 21.2 {[}2 of 3 seeds] (paper $-$1.5)",
            r"\textbf{27.5}",
            *("1,000", "4,400", "2.0", "5"),
        ],
        [escape(HOSTILE), r"\textbf{60.0} {[}1 of 3 seeds]", "--", "--", "--", "--", "--", "--"],
    ]


def test_it_is_one_table_of_booktabs_with_a_column_for_each_cell() -> None:
    text = latex(results_of(ROWS))
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}\n")
    assert text.endswith("\\end{tabular}\n\\end{table}\n")
    begun, ended = re.findall(r"\\begin{(\w+)}", text), re.findall(r"\\end{(\w+)}", text)
    assert (begun, ended) == (["table", "tabular"], ["tabular", "table"])
    [columns] = re.findall(r"\\begin{tabular}{(\w+)}", text)
    assert columns == "lrrrrrrr"
    assert {len(cells) for cells in rows_of(text)} == {len(columns)}
    rules = [line.strip() for line in text.splitlines() if line.strip() in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\label{tab:my-study}" in text


def test_no_text_is_a_command() -> None:
    """What is left of the escaped text, without the escapes, has no letter that LaTeX takes for one of its own."""
    text = escape(HOSTILE + "\n")
    assert text == (
        r"{[}50 \%] of\_a \& b \#1 \$x\$ \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}\textbar{}\textgreater{} {*}$\pm$ "
    )
    left = re.sub(r"\\text\w+{}|\\[&%$#_{}]|{[*\[]}|\$\\pm\$", "", text)
    assert not set(left) & set("\\&%$#_{}~^<>|*[\n")
    whole = latex(results_of(ROWS, study={"paper": {}}))
    assert whole.count("{") == whole.count("}") + whole.count(r"\{") - whole.count(r"\}")
    assert not [line for line in whole.splitlines()[1:] if re.search(r"(?<!\\)%", line)]


def test_the_caption_says_what_the_numbers_are_and_what_is_missing() -> None:
    text = latex(results_of(ROWS, missing=12, problems=("GPart / seed 1: exit status 1",)))
    [caption] = [line for line in text.splitlines() if "\\caption" in line]
    for said in (
        r"Median $\pm$ standard deviation (n - 1) of the test metric times 100; seeds 0, 1, 2.",
        "divides by n, as the paper's code does, is 0.816 times",
        "Device: -. Versions: -.",
        "Missing: 12 runs.",
        "Failed or without a score: 1 runs.",
    ):
        assert said in caption
    assert "Missing" not in latex(results_of(ROWS))
    assert "Failed" not in latex(results_of(ROWS))


def test_the_differences_are_a_table_of_their_own() -> None:
    more = {
        "RTE": Difference(11.0, 8.5, 13.5, 3),
        "Co_LA": Difference(-1.0, -24.8, 22.8, 3),
    }
    rows = [ROWS[0], row("B_b", None, None, differences=more)]
    text = latex(results_of(rows, study={"baseline": "GPart"}))
    assert rows_of(text)[3:] == [
        ["less GPart", "RTE", r"Co\_LA"],
        [r"B\_b", r"\textbf{+11.0 {[}+8.5, +13.5]}", "$-$1.0 {[}$-$24.8, +22.8]"],
    ]
    assert r"its 95\% Student interval" in text
    assert r"\label{tab:my-study-differences}" in text
    assert text.count(r"\toprule") == 2
    assert text.count(r"\label{") == 2


def test_the_command_writes_it_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    results_of(ROWS)
    assert study_command(["my_study.yaml", "--table"], ("no/such/program",)) == 0
    out = capsys.readouterr().out
    assert "written: runs/my_study/table.md, runs/my_study/table.tex, runs/my_study/table.csv" in out
    assert Path("runs/my_study/table.tex").read_text().startswith("% needs")
    with pytest.raises(SystemExit):
        study_command(["--help"])
    assert "table.tex (LaTeX, needs booktabs)" in capsys.readouterr().out
