"""Stands for ``gpart fit``: reads the words that a study gives, does what PLAN says, writes metrics.json.

PLAN (an environment variable) is a JSON list of [part of a word or several joined by "&", what to do] pairs; every pair
whose words are there counts, the later over the earlier: {"test": .., "val": .., "do": "ok|exit|kill|hang|quiet|fitted"}.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

words = sys.argv[1:]
wanted = {"test": 0.5, "val": 0.5, "do": "ok", "metric": "accuracy"}
for parts, what in json.loads(os.environ.get("PLAN", "[]")):
    if all(any(part in word for word in words) for part in parts.split("&")):
        wanted |= what
metrics = Path(next(word for word in words if word.startswith("--trainer.callbacks.path=")).split("=", 1)[1])
with open(os.environ["STARTS"], "a") as file:
    file.write(json.dumps(words) + "\n")
print("a line of the log")
(metrics.parent / "version_0").mkdir()  # an error where an earlier process's outputs are there
if wanted["do"] == "exit":
    print("gpart: error: d must be 1 or more", file=sys.stderr)
    print("a later line")
    sys.exit(2)
if wanted["do"] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if wanted["do"] == "hang":
    (metrics.parent / "pid").write_text(str(os.getpid()))
    time.sleep(60)
if wanted["do"] == "quiet":
    sys.exit(0)
content = {
    "state": "fitted" if wanted["do"] == "fitted" else "tested",
    "fit": {"seconds": wanted.get("seconds", 2.0), "epochs": 2, "steps": 10, "best_score": wanted["val"]},
    "test": {f"test/{wanted['metric']}": wanted["test"], "test/f1": 0.25},
    "parameters": {"trainable": wanted.get("trainable", 1100), "head": wanted.get("head", 100)},
    "kept_bytes": 4400,
    "peak_memory_bytes": wanted.get("peak", 5_000_000),
    "device": "cpu",
    "versions": {"gpart": "0.1.0", "torch": "2.0"},
}
metrics.write_text(json.dumps(content))
if wanted["do"] == "late":
    sys.exit(1)
