"""The most memory that training with a method takes, in a process of its own: ``python -m gpart.studies.bench.memory``.

Invariant: nothing of another contestant is in the process, and its settings of threads and of the C library's allocator
are every contestant's. On a CPU memory is the resident set, of which freed tensors are no part, since the allocator is
told to give blocks of 64 kB and more back at once; on CUDA it is what torch has allocated.

The process reads a job as JSON from its input and writes a :class:`Peak`, as JSON, as the last line of its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.optim import AdamW

from gpart import GPartAdapter
from gpart.errors import GPartError
from gpart.serialization.folder import TENSORS
from gpart.studies.bench.settings import FLOOR, Settings, find_device, from_json, parse_method
from gpart.studies.bench.steps import enter, make_batch
from gpart.studies.bench.subject import find_subject, head_parameters

STEPS = 3
"""Training steps; AdamW's state is there from the first on."""

FREED = "floor, gradients freed"
"""The floor with AdamW for the head, whose adapted weights' gradients are freed as soon as they are there.

What any dense update needs at least: the others train the head too.
"""

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Peak:
    """What was measured of one contestant."""

    method: str
    """As asked for, or :data:`FREED`."""

    built: int
    """Bytes before the first step: the model, and what the method added to it."""

    peak: int
    """The most bytes during the steps."""

    file: int | None
    """GPart's tensor file in bytes, head included; None of the other methods."""

    head: int
    """The head's numbers in bytes, as they are in that file."""


def measure_peak(settings: Settings, method: str) -> Peak:
    """Measures one contestant in a fresh process.

    Args:
        settings: the bench's; the first shape is what is trained on.
        method: a method as asked for, or :data:`FREED`.

    Raises:
        RuntimeError: if the process fails, with the end of what it printed.
    """
    threads = str(settings.threads or torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-m", "gpart.studies.bench.memory"],
        input=json.dumps({"settings": settings.to_json(), "method": method}),
        env={**os.environ, **_ALLOCATOR, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"measuring the memory of {method} ended with status {done.returncode}: {done.stderr[-2000:]}"
        )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def train_and_measure(settings: Settings, method: str) -> Peak:
    """Trains for a few steps in this very process."""
    device = find_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    subject = find_subject(settings.model, settings.sizes, settings.precision)
    model = subject.build(device, settings.seed)
    asked = parse_method(FLOOR if method == FREED else method)
    contestant = enter(asked, subject, model, copy=False)
    batch = make_batch(subject, settings.shapes[0], settings.seed, device)
    head = head_parameters(model, subject)
    if method == FREED:
        contestant = replace(contestant, optimizer=AdamW(head) if head else None)
        for weight in subject.plan.weights:
            model.get_parameter(weight.name).register_post_accumulate_grad_hook(_free)  # type: ignore[no-untyped-call]  # torch has no types here
    built = reset_peak(device)
    for _ in range(STEPS):
        contestant.train_step([batch])
    peak = read_peak(device)
    file = None if contestant.adapter is None else _file_size(contestant.adapter)
    return Peak(method, built, peak, file, sum(value.numel() * value.itemsize for value in head))


def reset_peak(device: torch.device) -> int:
    """Forgets the most memory so far; returns the bytes that are held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: VmHWM starts again from VmRSS
        return _status("VmRSS")
    except OSError:
        return _most_resident()


def read_peak(device: torch.device) -> int:
    """The most bytes that were held since :func:`reset_peak`; where the system cannot reset it, since the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return _status("VmHWM")
    except OSError:
        return _most_resident()


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _most_resident() -> int:
    if sys.platform == "win32":
        raise GPartError("resident memory is not measured on Windows: leave memory out of the parts")
    import resource  # noqa: PLC0415  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes elsewhere


def _free(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _file_size(adapter: GPartAdapter) -> int:
    with TemporaryDirectory() as folder:
        adapter.save(folder)
        return Path(folder, TENSORS).stat().st_size


def main() -> None:
    """Does the job that the process's input asks for."""
    job = json.load(sys.stdin)
    print(json.dumps(asdict(train_and_measure(from_json(job["settings"]), job["method"]))))  # noqa: T201  # its output


if __name__ == "__main__":
    main()
