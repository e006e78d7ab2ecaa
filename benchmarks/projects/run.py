"""Tries the line with real packages, each in an environment of its own, and writes what was found.

python benchmarks/projects/run.py ENVIRONMENTS OUT.json [NAME ...]

ENVIRONMENTS is a folder with one environment per package, named as the scripts (``lightly`` for ``lightly_models.py``);
docs/projects.md says how they are made.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = (
    "pytorch_forecasting",
    "darts",
    "neuralforecast",
    "scvi",
    "lightly",
    "torchgeo",
    "sentence_transformers",
)


def run(name: str, python: Path) -> dict[str, Any]:
    """What a script prints as its last line, or the end of its error."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    done = subprocess.run(
        [str(python), str(HERE / f"{name}_models.py")], env=environment, capture_output=True, text=True, check=False
    )
    seconds = round(time.perf_counter() - start, 1)
    if done.returncode:
        return {"script": name, "seconds": seconds, "error": done.stderr.splitlines()[-3:]}
    return {"script": name, "seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def main(environments: Path, out: Path, names: list[str]) -> None:
    """Writes the raw results."""
    found = [run(name, environments / name / "bin" / "python") for name in names or NAMES]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)  # noqa: S607
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/projects/run.py " + " ".join(sys.argv[1:]),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "runs": found,
    }
    out.write_text(json.dumps(facts, indent=2) + "\n")
    for one in found:
        print(one["script"], one.get("error") or f"{len(one['rows'])} models, {one['seconds']} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
