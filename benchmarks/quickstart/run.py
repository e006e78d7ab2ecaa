"""Times the quick start and linear probes that are given the same time, and scores all on the test part.

python benchmarks/quickstart/run.py OUT.json

Each run is a process of its own, through the installed command, so its seconds include start-up, loading and validation.
The checkpoint with the best validation accuracy is scored on the test part. The probe is tried with two learning rates.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def gpart(*words: str, cwd: str) -> str:
    """What ``gpart`` prints."""
    command = [sys.executable, "-m", "gpart.cli", *words, *QUIET]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def run(name: str, *more: str) -> dict[str, object]:
    """One fit, and the test of its best checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config=quickstart", *more]
        start = time.perf_counter()
        out = gpart("fit", *words, cwd=folder)
        seconds = time.perf_counter() - start
        best = re.search(r"best checkpoint: (\S+)", out)
        if best is None:
            raise ValueError(f"{name}: no checkpoint in {out[-500:]!r}")
        tested = gpart("test", *words, f"--ckpt_path={best[1]}", cwd=folder)
        score = re.search(r"test/accuracy\D+([0-9.]+)", tested)
        last = re.search(r"val/accuracy ([0-9.]+)", out)
        adapter = Path(folder, "adapters/quickstart/adapter_model.safetensors")
        return {
            "run": name,
            "words": more,
            "seconds": round(seconds, 1),
            "val accuracy, last epoch": float(last[1]) if last else None,
            "test accuracy, best checkpoint": float(score[1]) if score else None,
            "checkpoint bytes": Path(folder, best[1]).stat().st_size,
            "adapter bytes": adapter.stat().st_size if adapter.exists() else None,
        }


def main(out: Path) -> None:
    """Writes the raw results, after each run what there is."""
    # A number of epochs and not a limit in seconds: the schedule needs to know its end.
    probe = ["--config=methods/linear-probe", "--trainer.max_epochs=8"]
    asked: dict[str, list[str]] = {"GPart": [], "GPart, batches of any length": ["--data.group_by_length=false"]}
    asked |= {f"linear probe, lr {rate}": [*probe, f"--model.head_lr={rate}"] for rate in ("1e-2", "1e-3")}
    machine = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "cores": os.cpu_count()}
    rows = []
    for name, words in asked.items():
        rows.append(run(name, *words))
        out.write_text(json.dumps({**machine, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
