"""Runs every step of what a GPU is to show, and writes ``gpu.json`` after each; ``run.sh`` starts it.

Invariant: a step that fails, hangs or is killed takes nothing with it but itself. Each is a process group of its own with
a limit of its own, and the file says at every moment what was done, what failed and why. So this script imports nothing
that could be broken on the machine: only the standard library.

Without a GPU the same steps run at a small size, to try the script; the file then has ``"trial": true``, and no table is
made of it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

from steps import Step, all_steps

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

BUDGET = 465
"""Seconds for all steps together. The wheels take some before, and the whole is to stay within eight minutes."""

PATIENCE = 8
"""How many times as long a trial may take, each step and the whole: it measures nothing, and its machine may be busy."""

LEAST = 10
"""Seconds below which no step is started."""

_running: set[subprocess.Popen[bytes]] = set()

_SAID = 4000
"""Characters of a step's output that are kept, from its end. All of it goes to ``gpu.log``."""


def main() -> int:
    """Runs the steps; 0 if each was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = os.environ.get("OUT", "runs/gpu")
    parser.add_argument("--output", type=Path, default=Path(place), help="a folder; default: $OUT, else runs/gpu")
    parser.add_argument("--commit", help="of this checkout, where git cannot say it")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, and the machine's description")
    parser.add_argument("--trial", action="store_true", help="at a small size, also where there is a GPU")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory() as work:
        record = run_all(given, Path(work))
    states = [step["state"] for step in record["steps"].values()]
    print(f"{states.count('done')} of {len(states)} steps done: {given.output / 'gpu.json'}", flush=True)
    return 0 if set(states) == {"done"} else 1


def run_all(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The whole record, written to the output's folder after each step."""
    start = time.monotonic()
    record: dict[str, Any] = {
        "format": 1,
        "command": shlex.join(["bash", "benchmarks/gpu/run.sh", *sys.argv[1:]]),
        "commit": given.commit or _commit(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "budget": BUDGET,
        "trial": given.trial,
        "steps": {},
    }
    (given.output / "gpu.log").unlink(missing_ok=True)
    first = Step("machine", 90, [sys.executable, str(HERE / "machine.py"), "{folder}/machine.json"], "machine.json")
    _do([first], given, record, work, start)
    machine = record["steps"]["machine"].get("result") or {}
    # Where even torch is broken the GPU's steps are tried all the same: each says what it lacks.
    on_gpu = bool(machine.get("cuda", True)) and not given.trial
    record["trial"] = not on_gpu
    record["budget"] *= 1 if on_gpu else PATIENCE
    steps = all_steps(work, trial=not on_gpu, device="cuda" if machine.get("cuda", True) else "cpu")
    unknown = set(given.only or ()) - {step.name for step in steps}
    if unknown:
        raise SystemExit(f"there is no step {min(unknown)!r}; there are {', '.join(step.name for step in steps)}")
    chosen = [step for step in steps if not given.only or step.name in given.only]
    for together, group in groupby(chosen, lambda step: step.together):
        for some in [list(group)] if together else ([step] for step in group):
            _do(some, given, record, work, start)
    return record


def _do(steps: Sequence[Step], given: argparse.Namespace, record: dict[str, Any], work: Path, start: float) -> None:
    """Runs steps at the same time, each within its limit and what is left; writes the record before, and after each."""
    left = record["budget"] - (time.monotonic() - start)
    for step in steps:
        limit = step.limit * (PATIENCE if record["trial"] else 1)
        found = {"state": "running", "command": shlex.join(step.command), "limit": limit}
        if left < LEAST:
            found |= {"state": "not run", "why": f"{max(left, 0):.0f} s of {record['budget']} were left"}
        record["steps"][step.name] = found
    _write(given.output, record)
    if left < LEAST:
        print(f"{', '.join(step.name for step in steps)}: not run, no time is left", flush=True)
        return
    with ThreadPoolExecutor(len(steps)) as threads:
        running = {}
        for step in steps:
            seconds = min(record["steps"][step.name]["limit"], left)
            running[threads.submit(run_step, step, seconds, work / step.name, given.output / "gpu.log")] = step.name
        for ended in as_completed(running):
            name, found = running[ended], ended.result()
            record["steps"][name] |= found
            record["seconds"] = round(time.monotonic() - start, 1)
            _write(given.output, record)
            why = f": {found['why']}" if "why" in found else ""
            print(f"{name}: {found['state']}, {found['seconds']} s{why}", flush=True)


def run_step(step: Step, seconds: float, folder: Path, log: Path) -> dict[str, Any]:
    """Runs one step in a process group of its own.

    Args:
        step: what is run; ``{folder}`` in its command stands for ``folder``.
        seconds: after which the group is killed.
        folder: for what it writes; is made.
        log: to which all that it prints is added.

    Returns:
        ``state`` (done, failed or timed out), ``seconds``, ``why`` it was not done, ``result`` as far as there is one,
        and the end of what it ``said``.
    """
    folder.mkdir(parents=True)
    said = folder / "said.txt"
    command = [word.replace("{folder}", str(folder)) for word in step.command]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "140",
        **step.environment,
    }
    start = time.monotonic()
    status: int | None = None
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        _running.add(process)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
        _running.discard(process)
    text = said.read_text(encoding="utf-8", errors="replace")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"===== {step.name}\n{text}\n")
    result, flaw = _result(step, folder, text)
    found: dict[str, Any] = {"state": "done", "seconds": round(time.monotonic() - start, 1)}
    if status is None:
        found |= {"state": "timed out", "why": f"killed after {seconds:.0f} s"}
    elif status or flaw:
        found |= {"state": "failed", "why": flaw if not status else f"exit status {status}: {_last(text)}"}
    return found | {"result": result, "said": text[-_SAID:]}


def _result(step: Step, folder: Path, text: str) -> tuple[Any, str]:
    """What a step measured, and what is wrong with that."""
    if step.reads is None:
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", text)}
        return counts, "" if counts.get("passed") else f"no test passed: {counts or 'none was found'}"
    try:
        return json.loads((folder / step.reads).read_text(encoding="utf-8")), ""
    except (OSError, ValueError) as error:
        return None, f"no result: {error}"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it printed nothing"


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+"], capture_output=True, text=True, check=True)  # noqa: S607  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _write(folder: Path, record: dict[str, Any]) -> None:
    """The record as a whole: a reader finds the old file or the new one."""
    part = folder / "gpu.json.part"
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, folder / "gpu.json")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a step and what it has started, which is in a process group of its own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end(_signal: int, _frame: FrameType | None) -> None:
    for process in tuple(_running):
        _kill(process)
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
