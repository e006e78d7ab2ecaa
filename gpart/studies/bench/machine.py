"""Where a measurement was made: the machine, the versions, the commit, the load that others put on it."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from gpart.version import __version__


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The device, the CPU, cores, torch's threads, the load, versions, the commit and the date (UTC).

    Example:
        >>> found = describe_machine(torch.device("cpu"))
        >>> found["device"], found["threads"] == torch.get_num_threads()
        ('cpu', True)
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load(),
        "system": platform.platform(),
        "versions": {
            "gpart": __version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "commit": find_commit(Path(__file__).resolve().parents[3]),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def load() -> float | None:
    """Processes that wanted a core over the last minute, this one included; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_commit(root: Path) -> str | None:
    """The commit of a checkout, with a + if something was changed since; None where there is none."""
    if not (root / ".git").exists():
        return None
    try:
        commit, changed = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or none that may read the checkout
    return commit + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.strip()
