"""Stands for ``gpart`` in the tests of studies: does what PLAN says with a run's words and writes metrics.json.

PLAN (an environment variable) is a JSON list of pairs: words' parts joined by "&", and settings that go over those
below for every run whose words have all these parts. STARTS is the file that every start is written to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main(words: list[str]) -> int:
    wanted: dict[str, Any] = {
        "do": "ok",
        "metric": "accuracy",
        "test": 0.5,
        "val": 0.5,
        "mode": "max",
        "seconds": 2.0,
        "trainable": 1100,
        "head": 100,
        "peak": 5_000_000,
        "torch": "2.0",
        "edit": {},
    }
    for parts, settings in json.loads(os.environ.get("PLAN", "[]")):
        if all(any(part in word for word in words) for part in parts.split("&")):
            wanted |= settings
    do = wanted["do"]
    metrics = Path(next(word for word in words if word.startswith("--trainer.callbacks.path=")).split("=", 1)[1])
    with open(os.environ["STARTS"], "a") as file:
        file.write(json.dumps(words) + "\n")
    print("the log's first line")
    (metrics.parent / "version_0").mkdir()  # an error where an earlier process's outputs are there
    for path, text in wanted["edit"].items():
        Path(path).write_text(text)
    if do == "exit":
        print("gpart: error: d must be 1 or more", file=sys.stderr)
        print("a later line")
        return 2
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do in ("hang", "stubborn"):
        if do == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (metrics.parent / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    if do == "slow":
        time.sleep(0.2)
    if do == "quiet":
        return 0
    content = {
        "state": "fitted" if do == "fitted" else "tested",
        "fit": {
            "seconds": wanted["seconds"],
            "epochs": 2,
            "steps": 10,
            "best_score": wanted["val"],
            "best_mode": wanted["mode"],
        },
        "test": {f"test/{wanted['metric']}": wanted["test"], "test/f1": 0.25},
        "parameters": {"trainable": wanted["trainable"], "head": wanted["head"]},
        "kept_bytes": 4400,
        "peak_memory_bytes": wanted["peak"],
        "device": "cpu",
        "versions": {"gpart": "0.1.0", "torch": wanted["torch"]},
    }
    metrics.write_text(json.dumps(content))
    return 1 if do == "late" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
