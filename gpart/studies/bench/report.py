"""A bench's result as tables and as JSON.

Invariant: every number of a table can be computed again from the JSON, which holds every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpart.callbacks.table import readable_bytes
from gpart.studies.bench.measuring import GROUPS, Result
from gpart.studies.bench.memory import FREED, Peak
from gpart.studies.bench.settings import FLOOR, FROZEN, parse_method
from gpart.studies.bench.subject import Subject
from gpart.studies.bench.timing import Summary, summarize
from gpart.studies.bench.turns import Timing
from gpart.studies.experiments.tables import markdown_table

_NOTES = {
    "train": "Forward, backward, AdamW on what is trained, zero_grad. The floor is forward and backward of fully"
    " fine-tuning the adapted weights, its optimizer step not counted. Ratio: median over the rounds of (time / the"
    " floor's time in the same round).",
    "eval": "Forward without gradients; GPart within cached(). Full fine-tuning runs what the frozen model runs, so that"
    " its distance from 1 is noise.",
    "generate": "Greedy decoding with the cache of keys and values, one sequence; times are per new token; GPart within"
    " cached().",
    "inject": "Of a method applied to a fresh model. Stored group indices are computed at the first forward pass: that"
    " has a line of its own.",
}


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def sheets(result: Result) -> list[Sheet]:
    """The tables of what was measured."""
    tables = [_timing_sheet(timing) for timing in result.timings if timing.samples]
    if result.peaks:
        tables.append(_memory_sheet(result))
    tables.append(_size_sheet(result))
    return tables


def markdown(tables: Sequence[Sheet], about: Sequence[str]) -> str:
    """The tables to read, under what they are about."""
    parts = ["\n".join(about)]
    parts += [f"## {table.title}\n\n{markdown_table([table.header, *table.rows])}\n\n{table.note}" for table in tables]
    return "\n\n".join(parts) + "\n"


def about(result: Result, machine: dict[str, Any], command: str) -> list[str]:
    """What was measured, where and when, one fact a line."""
    settings, subject = result.settings, result.subject
    rounds = describe_rounds(settings.rounds, settings.warmup, result.heap_kept)
    return [
        f"# {settings.model}",
        "",
        f"- command: `{command}`",
        f"- model: {describe_model(subject)}",
        f"- precision {settings.precision}; {rounds}",
        *describe(machine),
    ]


def describe_model(subject: Subject) -> str:
    """What it is and what of it is adapted."""
    head = f", head {' '.join(subject.head)}" if subject.head else ""
    targets = subject.targets if isinstance(subject.targets, str) else " ".join(subject.targets)
    weights = f"adapted: {targets}, D = {subject.plan.size:,} in {len(subject.plan.weights)} weights"
    return f"{subject.task}, {subject.parameters:,} parameters with random weights{head}; {weights}"


def describe_rounds(rounds: int, warmup: int, heap_kept: bool) -> str:
    """How the methods took turns."""
    heap = "; freed memory stayed with the process while steps were timed" if heap_kept else ""
    return f"{rounds} rounds after {warmup} to warm up, every method once in each, in shuffled order{heap}"


def describe(machine: dict[str, Any]) -> list[str]:
    """The machine's lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = f"{machine['device']}; {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return [
        f"- {place}; load at the start {machine['load']}, at the end {machine.get('load_at_end')}",
        f"- {versions}; commit {machine['commit']}; {machine['date']}",
    ]


def content(result: Result, machine: dict[str, Any], command: str) -> dict[str, Any]:
    """The JSON: settings, machine, every sample and what was computed from them."""
    return {
        "command": command,
        "machine": machine,
        "settings": result.settings.to_json(),
        "heap_kept": result.heap_kept,
        "model": model(result.subject),
        "trained": result.trained,
        "timings": [
            {
                **asdict(timing),
                "summary": {name: asdict(found) for name, found in summaries(timing).items()},
            }
            for timing in result.timings
        ],
        "memory": [asdict(peak) for peak in result.peaks],
    }


def model(subject: Subject) -> dict[str, Any]:
    """A model's values for the JSON."""
    return {
        "name": subject.name,
        "task": subject.task,
        "parameters": subject.parameters,
        "target_modules": subject.targets,
        "modules_to_save": subject.head,
        "adapted": len(subject.plan.weights),
        "D": subject.plan.size,
    }


def summaries(timing: Timing) -> dict[str, Summary]:
    """The statistics of a part by method."""
    return summarize(timing.samples, timing.reference)


def label(name: str) -> str:
    """A contestant's name in tables.

    Example:
        >>> label("gpart group indices"), label("unilora")
        ('GPart: group indices', 'Uni-LoRA')
    """
    if name == FREED:
        return name
    method, _, rest = name.partition(f" {GROUPS}")
    return parse_method(method).label + (f": {GROUPS}" if name != method + rest else "")


def milliseconds(seconds: float) -> str:
    """Four digits of it.

    Example:
        >>> milliseconds(1.23456), milliseconds(0.00123456)
        ('1,235', '1.235')
    """
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _timing_sheet(timing: Timing) -> Sheet:
    header = ["method", "median ms", "minimum ms"]
    rows = []
    for name, found in summaries(timing).items():
        row = [label(name), milliseconds(found.median), milliseconds(found.minimum)]
        if found.ratio is not None:
            spread = f"{found.ratio_lower:.3f}..{found.ratio_upper:.3f}"
            row += [f"{found.ratio:.3f}", spread, f"{found.ratio_of_minima:.3f}"]
        rows.append(row)
    if timing.reference is not None:
        header += [f"ratio to {label(timing.reference)}", "quartiles", "of minima"]
    return Sheet(timing.title, header, rows, _NOTES[timing.part])


def _memory_sheet(result: Result) -> Sheet:
    size = result.subject.plan.size
    freed = next(peak.peak for peak in result.peaks if peak.method == FREED)
    rows = [
        [
            label(peak.method),
            f"{peak.built / 1e6:,.0f}",
            f"{peak.peak / 1e6:,.0f}",
            f"{(peak.peak - freed) / 1e6:+,.0f}",
            f"{(peak.peak - freed) / size:+.1f}",
        ]
        for peak in result.peaks
    ]
    batch, tokens = result.settings.shapes[0]
    kind = "Allocated by torch" if result.device.type == "cuda" else "Resident"
    return Sheet(
        f"peak memory of training, {batch}x{tokens}",
        ["method", "before MB", "peak MB", f"MB above {FREED}", "bytes per adapted weight"],
        rows,
        f"{kind} memory, each method in a process of its own. The last two columns are against the floor with AdamW for"
        " the head alone, whose adapted weights' gradients are freed as soon as they are there.",
    )


def _size_sheet(result: Result) -> Sheet:
    files = {peak.method: peak for peak in result.peaks if peak.file is not None}
    rows = []
    for name, count in result.trained.items():
        if name in {FLOOR, FROZEN}:
            continue
        peak = files.get(name)
        measured = "" if peak is None else _file(peak)
        rows.append([label(name), f"{count:,}", readable_bytes(4 * count), measured])
    return Sheet(
        "adapter",
        ["method", "trained", "as float32", "tensor file"],
        rows,
        "Without the head. The tensor file is GPart's own, less the head's numbers.",
    )


def _file(peak: Peak) -> str:
    return readable_bytes((peak.file or 0) - peak.head)
