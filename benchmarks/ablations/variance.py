"""How much of the spread of seeds is the partition's, from a study of partitions (rows) x runs (seeds).

    python benchmarks/ablations/variance.py benchmarks/ablations/seeds.yaml

A score is taken as mean + partition + run + rest, all three random and independent. With a partitions and b runs, and the mean
squares MS of the two-way table without repetition,

    var(rest) = MS_rest;   var(partition) = (MS_partition - MS_rest) / b;   var(run) = (MS_run - MS_rest) / a,

by the method of moments (S. R. Searle et al., "Variance Components", 1992, chapter 4). An estimate below 0 stands for none
that can be seen. "rest" is what a partition and a run come to only together.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from statistics import fmean

from gpart.errors import GPartError
from gpart.studies.experiments.schema import read_study


def components(table: Sequence[Sequence[float]]) -> dict[str, float]:
    """The three variances by the equations above.

    Args:
        table: the scores, a line for each partition and a place for each run.

    Example:
        >>> {name: round(one, 9) for name, one in components([[1, 2, 3], [3, 4, 5], [5, 6, 7]]).items()}
        {'partition': 4.0, 'run': 1.0, 'rest': 0.0}
    """
    a, b = len(table), len(table[0])
    mean = fmean(map(fmean, table))
    lines = [fmean(line) - mean for line in table]
    places = [fmean(place) - mean for place in zip(*table, strict=True)]
    rest = [value - mean - lines[i] - places[j] for i, line in enumerate(table) for j, value in enumerate(line)]
    of_rest = sum(one**2 for one in rest) / ((a - 1) * (b - 1))
    of_lines = b * sum(one**2 for one in lines) / (a - 1)
    of_places = a * sum(one**2 for one in places) / (b - 1)
    return {"partition": (of_lines - of_rest) / b, "run": (of_places - of_rest) / a, "rest": of_rest}


def main(study: str) -> None:
    """Prints the scores and the three standard deviations of each column.

    Raises:
        GPartError: if a run is missing.
    """
    read = read_study(study)
    runs = json.loads((read.folder / "table.json").read_text())["runs"]
    for column in read.column_axis.values:
        there = {
            (read.row_label(run["labels"]), run["seed"]): run["score"]
            for run in runs
            if run["labels"][read.columns] == column.label and run["state"] == "finished" and run["score"] is not None
        }
        missing = [place for row in read.rows for seed in read.seeds if (place := (row, seed)) not in there]
        if missing:
            raise GPartError(
                f"{column.label}: {len(missing)} runs are missing, such as partition and seed {missing[0]}"
            )
        table = [[there[row, seed] * read.scale for seed in read.seeds] for row in read.rows]
        print(f"{column.label}: {column.metric} x {read.scale:g}, a line for each partition, a column for each run\n")
        for row, line in zip(read.rows, table, strict=True):
            print(f"  {row:>4}  " + "  ".join(f"{value:6.2f}" for value in line))
        found = components(table)
        whole = sum(max(one, 0.0) for one in found.values())
        print()
        for name, one in found.items():
            deviation = math.sqrt(max(one, 0.0))
            share = max(one, 0.0) / whole if whole else 0.0
            print(
                f"  {name:9}  std {deviation:5.2f}  {share:4.0%} of the variance" + ("  (below 0)" if one < 0 else "")
            )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (GPartError, FileNotFoundError) as error:
        sys.exit(f"variance.py: error: {error}")
