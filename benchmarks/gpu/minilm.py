"""The quick start on the model and the data that were carried in: ``python minilm.py CARRIED OUT.json [--trial]``.

The same recipe and the same measurement as ``benchmarks/quickstart``, with bf16-mixed; the weights travelled as bfloat16.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart" / "run.py"


def words(carried: Path, trial: bool) -> list[str]:
    """What is given to ``gpart fit`` and ``gpart test`` beside the recipe."""
    model, data = carried / "minilm", carried / "movie-reviews" / "movieReviewSnippets_GroundTruth.txt"
    found = [f"--model.model={model}", f"--data.model={model}", f"--data.path={data}"]
    if trial:
        few = ["--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
        return [*found, "--trainer.max_epochs=1", "--data.train_size=64", *few]
    return [*found, "--trainer.precision=bf16-mixed"]


def main(carried: Path, out: Path, trial: bool) -> int:
    """Writes the file; 1 where the command fails, whose words are then printed."""
    spec = importlib.util.spec_from_file_location("quickstart_run", QUICKSTART)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(QUICKSTART)
    quickstart: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    try:
        found = quickstart.run("GPart", *words(carried, trial))
    except subprocess.CalledProcessError as error:
        print(error.stdout, error.stderr, f"gpart {error.cmd[3]} ended with status {error.returncode}", sep="\n")
        return 1
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), "--trial" in sys.argv[3:]))
