"""Writes the results of a study as table.md, table.csv and table.json.

Invariant: the same results give the same bytes. table.md is for reading. The other two hold every run, so that
everything in table.md can be computed from them again.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpart.serialization.atomic import replacing
from gpart.studies.experiments.paired import CONFIDENCE, Difference
from gpart.studies.experiments.results import Choice, Record, Results, Row, Score
from gpart.studies.experiments.study import AVERAGE, RUN_FIELDS

_COSTS = ("trainable (no head)", "adapter bytes", "train s", "peak MB")


def write_table(results: Results) -> list[Path]:
    """Writes the three files into the study's folder, and returns their paths."""
    folder = results.study.folder
    folder.mkdir(parents=True, exist_ok=True)
    forms = {"md": markdown(results), "csv": csv_text(results), "json": json_text(results)}
    for ending, text in forms.items():
        with replacing(folder / f"table.{ending}") as file:
            file.write(text.encode())
    return [folder / f"table.{ending}" for ending in forms]


def markdown(results: Results) -> str:
    """Returns the content of table.md: the table, the selected candidates, and the runs that are missing or failed."""
    study = results.study
    columns = [value.label for value in study.column_axis.values]
    best = {column: _best(row.scores[column] for row in results.rows) for column in columns}
    best[AVERAGE] = _best(row.average for row in results.rows)
    lines = [[" / ".join(axis.name for axis in study.row_axes) or "study", *columns, f"{AVERAGE}.", *_COSTS]]
    for row in results.rows:
        paper = study.paper.get(row.label, {})
        scores = [_place(row.scores[column], best[column], paper.get(column), len(study.seeds)) for column in columns]
        average = _place(row.average, best[AVERAGE], paper.get(AVERAGE), len(study.seeds))
        lines.append([row.label, *scores, average, *_costs(row)])
    parts = [markdown_table(lines), _notes(results)]
    if study.baseline is not None:
        parts.append(_differences(results, columns))
    if results.choices:
        chosen = [["cell", "chosen", "validation score", "of"], *(_choice(choice) for choice in results.choices)]
        seeds = study.seeds[: study.tune_seeds]
        by = "the validation score of the first seed"
        if len(seeds) > 1:
            by = f"the mean validation score of seeds {', '.join(map(str, seeds))}"
        parts.append(f"Chosen by {by}:\n\n" + markdown_table(chosen))
    if results.missing:
        parts.append(f"Missing: {results.missing} runs.")
    if results.problems:
        parts.append("Failed:\n\n" + "\n".join(f"- {line}" for line in results.problems))
    return "\n\n".join(parts) + "\n"


def csv_text(results: Results) -> str:
    """Returns the content of table.csv: for each run its labels, tuned settings, unscaled scores and costs."""
    tuned = _ordered(key for record in results.records for key in record.run.tuned)
    tests = sorted({key for record in results.records for key in _mapping(record, "test")})
    axes = [axis.name for axis in results.study.axes]
    # The names of settings and test metrics have a dot or a slash in them, so that they differ from all other fields.
    header = ["run", *axes, *(f"tuned.{key}" for key in tuned), *RUN_FIELDS[1:], *tests]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for record in results.records:
        test = {key: value for key, value in _mapping(record, "test").items() if key in tests}
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
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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


def _differences(results: Results, columns: Sequence[str]) -> str:
    """Returns the table of paired differences to the baseline."""
    baseline = results.study.baseline

    def text(one: Difference | None) -> str:
        if one is None:
            return "-"
        if one.low is None or one.high is None:
            return f"{one.mean:+.1f} (one pair)"
        value = f"{one.mean:+.1f} [{one.low:+.1f}, {one.high:+.1f}]"
        return value if one.ordered is None else f"**{value}**"

    rows = [row for row in results.rows if row.label != baseline]
    lines = [[f"less {baseline}", *columns]]
    lines += [[row.label, *(text(row.differences.get(column)) for column in columns)] for row in rows]
    return (
        f"Paired differences to {baseline}, seed by seed: the mean and its {CONFIDENCE:.0%} Student interval, each by"
        " itself. Bold: the interval excludes 0, so that the two are ordered; the others are not.\n\n"
        + markdown_table(lines)
    )


def _best(scores: Iterable[Score | float | None]) -> str | None:
    """Returns the highest value as it is shown. Values that look equal in the table count as equal."""
    values = [score.value if isinstance(score, Score) else score for score in scores if score is not None]
    return max((f"{value:.1f}" for value in values if math.isfinite(value)), key=float, default=None)


def _place(score: Score | float | None, best: str | None, paper: float | None, seeds: int) -> str:
    text = "-"
    if score is not None:
        value = text = f"{score.value if isinstance(score, Score) else score:.1f}"
        if isinstance(score, Score) and score.deviation is not None:
            text += f" ± {score.deviation:.1f}"
        if value == best:
            text = f"**{text}**"
        if isinstance(score, Score) and score.count < seeds:
            text += f" [{score.count} of {seeds} seeds]"
    return text if paper is None else f"{text} (paper {paper:g})"


def _costs(row: Row) -> list[str]:
    return [
        "-" if row.parameters is None else f"{row.parameters:,.0f}",
        "-" if row.kept_bytes is None else f"{row.kept_bytes:,.0f}",
        "-" if row.seconds is None else f"{row.seconds:.1f}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
    ]


def _choice(choice: Choice) -> list[str]:
    def text(score: float | None) -> str:
        return "none" if score is None else f"{score:.4g}"

    of = "; ".join(f"{candidate}: {text(score)}" for candidate, score in choice.scores.items())
    if choice.chosen is None:
        return [choice.cell, "-", choice.why, of]
    chosen = choice.chosen.text + (" (an end of its grid)" if choice.at_an_end else "")
    return [choice.cell, chosen, text(choice.scores[choice.chosen.text]), of]


def _notes(results: Results) -> str:
    study = results.study
    seeds = ", ".join(map(str, study.seeds))
    finished = [record.outcome.metrics for record in results.records if record.outcome.state == "finished"]
    devices = sorted({str(metrics.get("device")) for metrics in finished})
    versions: dict[str, set[str]] = {}
    for record in results.records:
        for package, version in _mapping(record, "versions").items():
            versions.setdefault(str(package), set()).add(str(version))
    used = ", ".join(f"{package} {' and '.join(sorted(those))}" for package, those in sorted(versions.items()))
    shown = f"{study.statistic.capitalize()} ± standard deviation (n - 1)" if len(study.seeds) > 1 else "Score"
    return (
        f"{shown} of the test metric times {study.scale:g}; seeds {seeds}. Bold: the best of a column. Parameters,"
        " bytes and seconds are medians over a row's runs, memory the maximum.\n"
        f"Device: {', '.join(devices) or '-'}. Versions: {used or '-'}."
    )


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown. The first line is the header; all columns but the first are aligned to the right."""
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    rule = ["---", *("---:" for _ in escaped[0][1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])


def _mapping(record: Record, key: str) -> Mapping[str, Any]:
    """Returns a mapping in metrics.json by its key; an empty one if there is none."""
    value = record.outcome.metrics.get(key)
    return value if isinstance(value, Mapping) else {}


def _ordered(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
