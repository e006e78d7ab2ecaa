"""The results of a study for other programs: table.csv and table.json.

Invariant: both hold every run, so that everything in table.md and table.tex can be computed from them again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from gpart.serialization.json_numbers import finite
from gpart.studies.experiments.paired import Difference
from gpart.studies.experiments.results import Record, Results, Score
from gpart.studies.experiments.study import RUN_FIELDS


def csv_text(results: Results) -> str:
    """Returns the content of table.csv: for each run its labels, tuned settings, unscaled scores and costs."""
    tuned = _ordered(key for record in results.records for key in record.run.tuned)
    tests = sorted({_test_column(key) for record in results.records for key in mapping(record, "test")})
    axes = [axis.name for axis in results.study.axes]
    # The names of settings and test metrics have a dot or a slash in them, so that they differ from all other fields.
    header = ["run", *axes, *(f"tuned.{key}" for key in tuned), *RUN_FIELDS[1:], *tests]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for record in results.records:
        test = {_test_column(key): value for key, value in mapping(record, "test").items()}
        settings = {f"tuned.{key}": value for key, value in record.run.tuned.items()}
        writer.writerow({**record.run.labels, **settings, **_fields(record), **test})
    return text.getvalue()


def json_text(results: Results) -> str:
    """Returns the content of table.json: the table's numbers, the selected candidates, and every run.

    A number that is not finite becomes null, since JSON has no form for it.
    """
    study = results.study
    content = {
        "study": study.name,
        "columns": [value.label for value in study.column_axis.values],
        "seeds": study.seeds,
        "tune_seeds": study.tune_seeds,
        "baseline": study.baseline,
        "statistic": study.statistic,
        "scale": study.scale,
        "rows": [
            {
                "label": row.label,
                "scores": {column: _score_fields(score) for column, score in row.scores.items()},
                "average": row.average,
                "differences": {column: _difference_fields(one) for column, one in row.differences.items()},
                "trainable_without_head": row.parameters,
                "kept_bytes": row.kept_bytes,
                "seconds": row.seconds,
                "peak_memory_bytes": row.peak_bytes,
                "paper": study.paper.get(row.label, {}),
            }
            for row in results.rows
        ],
        "choices": [
            {
                "cell": choice.cell,
                "chosen": None if choice.chosen is None else dict(choice.chosen.tuned),
                "why": choice.why,
                "at_an_end": choice.at_an_end,
                "validation_scores": dict(choice.scores),
            }
            for choice in results.choices
        ],
        "missing": results.missing,
        "problems": results.problems,
        "runs": [
            {
                **_fields(record),
                "labels": dict(record.run.labels),
                "tuned": dict(record.run.tuned),
                "folder": record.run.folder.as_posix(),
                "why": record.outcome.why,
                "metrics": dict(record.outcome.metrics),
            }
            for record in results.records
        ],
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _fields(record: Record) -> dict[str, Any]:
    run, outcome = record.run, record.outcome
    values = (
        run.name,
        run.seed,
        record.chosen,
        outcome.state,
        run.metric,
        outcome.score(run),
        outcome.number("fit", "best_score"),
        outcome.number("fit", "seconds"),
        outcome.number("fit", "epochs"),
        outcome.number("fit", "steps"),
        outcome.number("parameters", "trainable"),
        outcome.number("parameters", "head"),
        outcome.number("kept_bytes"),
        outcome.number("peak_memory_bytes"),
        outcome.metrics.get("device"),
    )
    return dict(zip(RUN_FIELDS, values, strict=True))


def _score_fields(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else {"value": score.value, "std": score.deviation, "runs": score.count}


def _difference_fields(one: Difference | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"mean": one.mean, "low": one.low, "high": one.high, "pairs": one.count, "ordered": one.ordered}


def mapping(record: Record, key: str) -> Mapping[str, Any]:
    """Returns a mapping in metrics.json by its key; an empty one if there is none."""
    value = record.outcome.metrics.get(key)
    return value if isinstance(value, Mapping) else {}


def _test_column(name: str) -> str:
    """A test metric's column: its name, which is told apart from the table's own columns where it is without ``test/``."""
    return name if name.startswith("test/") else f"test.{name}"


def _ordered(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))
