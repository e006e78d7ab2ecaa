"""The learning rates of the d-sweep: chosen at three lengths of theta, and by a law between them.

    python benchmarks/d-sweep/rates.py benchmarks/d-sweep/sst2-rates.yaml benchmarks/d-sweep/sst2.yaml

Reads which rates the first study has chosen (its table.json), and writes the others into the second study's file, in the
place of ``model.lr`` in each row ``d: {set: {method.d: ..., model.lr: ...}}``. With chosen rates r at d_1 < d_2 < d_3:

    log r(d) is linear in log d between two neighbours;   r(d) = r(d_1)·sqrt(d_1 / d) below d_1.

The second is the rate at which an Adam step moves the weights as far as at d_1: every entry of theta moves by about r, so
theta by r·sqrt(d), and ‖P·theta‖ = ‖theta‖. Nothing is extrapolated above d_3, which is D.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from gpart.errors import GPartError
from gpart.studies.experiments.schema import read_study

ROW = re.compile(r"^( +(\d+): \{set: \{method\.d: \2\b[^{}]*model\.lr: )([^,{}]+)(.*)$", re.MULTILINE)
RATE = "model.lr"


def rate_at(d: int, chosen: Mapping[int, float]) -> float:
    """The rate at a length of theta, by the law above, rounded to three digits.

    Example:
        >>> [rate_at(d, {100: 0.1, 10_000: 0.01}) for d in (1, 100, 1000, 10_000)]
        [1.0, 0.1, 0.0316, 0.01]
    """
    known = sorted(chosen)
    if d > known[-1]:
        raise GPartError(f"d={d} is above {known[-1]}, the largest of {known} whose rate was chosen")
    above = next(one for one in known if one >= d)
    if above == known[0]:
        rate = chosen[above] * math.sqrt(above / d)
    else:
        below = known[known.index(above) - 1]
        part = math.log(d / below) / math.log(above / below)
        rate = chosen[below] ** (1 - part) * chosen[above] ** part
    return float(f"{rate:.3g}")


def chosen_rates(table: Path) -> dict[int, float]:
    """The rates that a finished study has chosen, by d.

    Raises:
        GPartError: if a choice is still to be made.
    """
    try:
        choices = json.loads(table.read_text())["choices"]
    except FileNotFoundError:
        raise GPartError(f"no table at {table}: run the study of the rates first") from None
    found = {}
    for choice in choices:
        label = choice["cell"].split(" / ")[-1]
        if label.isdigit():
            if choice["chosen"] is None:
                raise GPartError(f"{table}: no rate is chosen for {choice['cell']}: {choice['why']}")
            found[int(label)] = choice["chosen"][RATE]
    return found


def main(rates: str, study: str) -> None:
    """Writes the rates into the study's file, and prints them all."""
    chosen = chosen_rates(read_study(rates).folder / "table.json")
    text = Path(study).read_text(encoding="utf-8")
    Path(study).write_text(
        ROW.sub(lambda row: f"{row[1]}{rate_at(int(row[2]), chosen):.2e}{row[4]}", text), encoding="utf-8"
    )
    read_study(study)
    for d, rate in chosen.items():
        print(f"{d:>9,}  {rate:.2e}  chosen")
    for row in ROW.finditer(Path(study).read_text(encoding="utf-8")):
        print(f"{int(row[2]):>9,}  {row[3]}  by the law")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except GPartError as error:
        sys.exit(f"rates.py: error: {error}")
