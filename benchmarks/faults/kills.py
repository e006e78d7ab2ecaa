"""Kills a real run at random moments, goes on, and compares the end with a run that was never killed.

    python benchmarks/faults/kills.py --out benchmarks/faults --kills 30 --seed 0

The run is the quick start's recipe (MiniLM with its dropout, theta and the head, AdamW and its schedule) with a checkpoint
at every step, of which the newest two are kept. There are three kinds of moments, in turn: while one of the first five
checkpoints is being written (as soon as its temporary file is seen, and up to ten milliseconds later), a random time
after the first new checkpoint, and a random time after the process has started, when it may not have taken a step yet. After each kill
every checkpoint in the folder is read by the library's own reader, and the newest is where the next process goes on.

Exit status 1 if a checkpoint could not be read, none was left, or the end is not the same, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gpart.serialization.checkpoint_file import load_checkpoint_file
from gpart.version import __version__

LONGEST = 600.0
"""Seconds after which a process that shows nothing new is taken for hung."""


def command(folder: Path, steps: int, checkpoint: Path | None) -> list[str]:
    """The words that start the run, from the beginning or from a checkpoint."""
    keeper = {
        "class_path": "ModelCheckpoint",
        "init_args": {
            "dirpath": str(folder), "filename": "{step}", "every_n_train_steps": 1, "save_top_k": 2, "monitor": "step",
            "mode": "max",
        },
    }  # fmt: skip
    words = [
        "fit", "--config", "quickstart", "--trainer.max_epochs", "-1", "--trainer.max_steps", str(steps),
        "--trainer.callbacks", json.dumps([keeper]), "--trainer.default_root_dir", str(folder / "root"),
        "--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "2",
        "--trainer.num_sanity_val_steps", "0", "--data.train_size", "640", "--method.save_folder", str(folder / "adapter"),
    ]  # fmt: skip
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
    return [sys.executable, "-m", "gpart.cli", *words, *resume]


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.partition("=")[2])


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, the newest last."""
    return sorted(folder.glob("step=*.ckpt"), key=step_of)


def killed(words: list[str], folder: Path, kind: str, draw: random.Random) -> dict[str, Any]:
    """Starts the run, kills it at a moment of this kind, and says what it left."""
    before = {path.name for path in folder.glob("*.ckpt")}
    parts = {path.name for path in folder.glob(".*.part")}
    delay = draw.uniform(0, {"writing": 0.01, "after a checkpoint": 8.0, "after the start": 20.0}[kind])
    with (folder.parent / "log.txt").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    started = time.monotonic()
    if kind == "writing":
        seen, wanted = set(parts), len(parts) + draw.randint(1, 5)

        def begun() -> bool:
            seen.update(path.name for path in folder.glob(".*.part"))
            return len(seen) >= wanted

        _wait(process, begun)
    elif kind == "after a checkpoint":
        _wait(process, lambda: {path.name for path in folder.glob("*.ckpt")} - before)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    ended = process.wait()
    return {
        "kind": kind,
        "seconds": round(time.monotonic() - started, 3),
        "ended by": signal.Signals(-ended).name if ended < 0 else ended,
        "half-written file left": bool({path.name for path in folder.glob(".*.part")} - parts),
        "new checkpoints": len({path.name for path in folder.glob("*.ckpt")} - before),
    }


def _wait(process: subprocess.Popen[bytes], seen: Any) -> None:
    """Until something is seen, or the process has ended."""
    begun = time.monotonic()
    while not seen() and process.poll() is None:
        if time.monotonic() - begun > LONGEST:
            process.kill()
            raise TimeoutError(f"nothing new for {LONGEST} s")
        time.sleep(0.0005)


def read_all(folder: Path) -> dict[str, str]:
    """Why each checkpoint that can't be read can't be."""
    bad = {}
    for path in checkpoints(folder):
        try:
            load_checkpoint_file(path)
        except (ValueError, OSError) as error:
            bad[path.name] = str(error)
    return bad


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two checkpoints' values differ; tensors by their bits, and paths and times left out."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*map(str, one), *map(str, other)})
        left, right = ({str(key): value for key, value in item.items()} for item in (one, other))
        return [found for key in keys for found in differences(left.get(key), right.get(key), f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            found
            for at, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{where}/{at}")
        ]
    return [] if one == other else [where]


COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


def end_of(folder: Path) -> dict[str, Any]:
    """What a finished run is compared by: its last checkpoint and the states of its generators."""
    checkpoint = load_checkpoint_file(checkpoints(folder)[-1])
    return {**{key: checkpoint[key] for key in COMPARED}, "random": checkpoint["callbacks"]["RandomStates"]}


def main() -> int:
    """Runs everything and writes ``kills.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=240, help="length of the run")
    given = parser.parse_args()
    draw = random.Random(given.seed)  # noqa: S311  # no secret
    kinds = ["writing", "after a checkpoint", "after the start"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work, cut = Path(name, "whole"), Path(name, "cut")
        for folder in (work, cut):
            folder.mkdir()
        subprocess.run(
            command(work, given.steps, None), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        print(f"the whole run has ended at step {step_of(checkpoints(work)[-1])}", flush=True)
        for number in range(given.kills):
            newest = (checkpoints(cut) or [None])[-1]
            row = killed(command(cut, given.steps, newest), cut, kinds[number % 3], draw)
            row |= {"from step": step_of(newest) if newest else 0, "cannot be read": read_all(cut)}
            left = checkpoints(cut)
            row |= {"checkpoints left": len(left), "to step": step_of(left[-1]) if left else 0}
            rows.append(row)
            print(number + 1, row, flush=True)
        newest = (checkpoints(cut) or [None])[-1]
        subprocess.run(
            command(cut, given.steps, newest), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        different = differences(end_of(work), end_of(cut))
        adapters = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (work, cut)]
    summary = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "versions": {"gpart": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "steps": given.steps,
        "kills": len(rows),
        "ended by SIGKILL": sum(row["ended by"] == "SIGKILL" for row in rows),
        "left a half-written temporary file": sum(row["half-written file left"] for row in rows),
        "checkpoints that could not be read": sum(len(row["cannot be read"]) for row in rows),
        "kills after the first checkpoint that left none": sum(
            not row["checkpoints left"] and row["from step"] > 0 for row in rows
        ),
        "different from the run that was never killed": different,
        "adapter folders equal": adapters[0] == adapters[1],
    }
    (given.out / "kills.json").write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    bad = summary["checkpoints that could not be read"] or summary["kills after the first checkpoint that left none"]
    return 1 if bad or different or adapters[0] != adapters[1] else 0


if __name__ == "__main__":
    sys.exit(main())
