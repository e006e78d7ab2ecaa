"""The tables of ``gpu.json``: ``python benchmarks/gpu/table.py benchmarks/gpu/gpu.json [--into docs/performance.md]``.

Prints a section in Markdown, or puts it into a document, in the place of the one that an earlier run gave, else before the
last section. What was not done is said, and no table is made of a trial.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from gpart.errors import GPartError
from gpart.studies.bench.memory import FREED
from gpart.studies.bench.report import label, milliseconds
from gpart.studies.experiments.tables import markdown_table

HEADING = "## On a GPU"
Record = dict[str, Any]


def main() -> int:
    """Prints the section, or puts it into the document; 1 with a line of why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="gpu.json")
    parser.add_argument("--into", type=Path, help="a document")
    given = parser.parse_args()
    try:
        text = section(json.loads(given.record.read_text(encoding="utf-8")))
    except GPartError as error:
        print(f"{given.record}: {error}", file=sys.stderr)
        return 1
    if given.into is None:
        print(text)
    else:
        given.into.write_text(put(given.into.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


def put(document: str, text: str) -> str:
    r"""The document with the section in it.

    Example:
        >>> put("# A\n\n## On a GPU\n\nold\n\n## Last\n", "## On a GPU\n\nnew")
        '# A\n\n## On a GPU\n\nnew\n\n## Last\n'
    """
    starts = [match.start() for match in re.finditer(r"^## ", document, re.MULTILINE)] + [len(document)]
    old = document.find(f"{HEADING}\n")
    if old >= 0:
        start, stop = old, next(at for at in starts if at > old)
    else:
        start = stop = starts[-2] if len(starts) > 1 else len(document)
    return "\n\n".join(part.strip("\n") for part in (document[:start], text, document[stop:]) if part.strip()) + "\n"


def section(record: Record) -> str:
    """All tables, under what was run where.

    Raises:
        GPartError: of a trial, which measures nothing.
    """
    if record["trial"]:
        raise GPartError("this is a trial at a small size: it measures nothing, so that there is no table of it")
    found = {name: step.get("result") for name, step in record["steps"].items()}
    parts = [HEADING, _about(record, found["machine"] or {}), *_missing(record)]
    for name in ("roberta", "qwen"):
        if bench := found.get(name):
            parts += _bench(bench, found.get(f"memory-{name}"))
    if launch := found.get("launch"):
        parts += _launch(launch)
    if checks := found.get("kernels"):
        parts += _checks(checks)
    if speeds := found.get("speeds"):
        parts += _speeds(speeds)
    if found.get("sweep") and found.get("sweep-torch"):
        parts += _sweep(found["sweep"], found["sweep-torch"])
    if run := found.get("minilm"):
        parts.append(
            f"The quick start on it, bf16-mixed: {run['seconds']} s with start-up, loading and validation, test accuracy"
            f" {run['test accuracy, best checkpoint']:.3f}."
        )
    return "\n\n".join(parts)


def _about(record: Record, machine: Record) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in machine.get("packages", {}).items() if number)
    place = f"{machine.get('device')} ({machine.get('nvidia-smi')}), Python {machine.get('python')}, {packages}"
    run = f"`{record['command']}`, {record['seconds']} s, commit {record['commit']}, {record['date']}"
    lines = [f"{place}; {run}; every sample is in [gpu.json](../benchmarks/gpu/gpu.json)."]
    if copied := machine.get("copy_bytes_per_s"):
        product = machine["bf16_flops_per_s"] / 1e12
        lines.append(
            f"It copies {copied / 1e12:.2f} TB/s, read and written, and multiplies {product:.0f} TFLOP/s in bf16."
        )
    tests = (record["steps"].get("tests") or {}).get("result") or {}
    if tests:
        lines.append(f"GPU tests: {', '.join(f'{number} {word}' for word, number in tests.items())}.")
    return " ".join(lines)


def _missing(record: Record) -> list[str]:
    """A list of what was not done."""
    steps = record["steps"].items()
    rows = [
        f"- not whole: {name}, {step['state']}: {step.get('why', '')}"
        for name, step in steps
        if step["state"] != "done"
    ]
    return ["\n".join(rows)] if rows else []


def _bench(bench: Record, memory: Record | None) -> list[str]:
    """A model: training, evaluation and memory, a line for each method."""
    parts = {timing["part"]: timing for timing in bench["timings"]}
    peaks = {peak["method"]: peak["peak"] for peak in (memory or {}).get("memory", [])}
    rows = [
        ["method", "train step ms", "to the floor", "quartiles", "eval ms", "to frozen", "peak MB", "bytes a weight"]
    ]
    for name in dict.fromkeys([*(name for timing in parts.values() for name in timing["summary"]), *peaks]):
        if name.endswith(" group indices"):
            continue  # a line of its own where injecting is timed
        train, evaluated = (parts.get(part, {}).get("summary", {}).get(name) for part in ("train", "eval"))
        row = [label(name), *(_time(train) if train else [""] * 3)]
        row += [*_time(evaluated)[:2]] if evaluated else ["", ""]
        row.append(f"{peaks[name] / 1e6:,.0f}" if name in peaks else "")
        size = bench["model"]["D"]
        row.append(f"{(peaks[name] - peaks[FREED]) / size:+.1f}" if name in peaks and FREED in peaks else "")
        rows.append(row)
    (batch, tokens), *_ = bench["settings"]["shapes"]
    title = (
        f"**{Path(bench['settings']['model']).name}**, {batch} x {tokens} tokens, {bench['settings']['precision']}, random"
        f" weights, D = {bench['model']['D']:,}, d = {bench['settings']['sizes']['d']:,}, medians of"
        f" {bench['settings']['rounds']} rounds in turns. Peak memory is what torch allocated, each method in a process of its"
        f" own; bytes are per adapted weight, above the floor with freed gradients."
    )
    return [title, markdown_table(rows)]


def _time(summary: Record) -> list[str]:
    ratio = summary["ratio"]
    if ratio is None:
        return [milliseconds(summary["median"]), "", ""]
    spread = f"{summary['ratio_lower']:.3f}..{summary['ratio_upper']:.3f}"
    return [milliseconds(summary["median"]), f"{ratio:.3f}", spread]


def _launch(launch: Record) -> list[str]:
    """GPart's excess divided by LoRA's, a line for each part."""
    names = [name for name in launch["timings"][0]["summary"] if name.startswith("gpart")]
    rows = [["part", "LoRA's excess, ms", *(label(name) for name in names)]]
    for timing in launch["timings"]:
        excess = timing["excess"]
        shares = [excess.get(name, {}).get("share") for name in names]
        own = f"{1e3 * excess['lora']['median']:.2f}"
        rows.append([timing["part"], own, *("-" if share is None else f"{share:.2f}" for share in shares)])
    title = "**Where launching costs more than arithmetic** (`gpart bench --launch`): excess divided by LoRA's, wanted at most 1."
    return [title, markdown_table(rows)]


def _checks(checks: list[Record]) -> list[str]:
    right = sum(not check["difference"] for check in checks)
    taken = sum(check["seconds"] for check in checks)
    title = f"**Triton kernels**: {right} of {len(checks)} give the reference's numbers; compiled and checked in {taken:.0f} s."
    wrong = [f"- {check['operation']} {check['dtype']} {check['indices']}: {check['difference']}" for check in checks if check["difference"]]  # fmt: skip
    return [title, *(["\n".join(wrong)] if wrong else [])]


def _speeds(speeds: list[Record]) -> list[str]:
    columns = {
        "kernel, stored": ("triton", "stored"),
        "computed": ("triton", "computed"),
        "torch, stored": ("torch", "stored"),
    }
    found = {(one["operation"], one["dtype"], one["d"], one["by"], one["indices"]): one for one in speeds}
    rows = [["operation", "dtype", "d", *columns]]
    for key in dict.fromkeys(key[:3] for key in found):
        cells = [_speed(found.get((*key, *column))) for column in columns.values()]
        rows.append([key[0], key[1], f"{key[2]:,}", *cells])
    entries = f"Alone, {speeds[0]['entries']:,} entries in one block: ms, and TB/s of what has to be read and written."
    return [entries, markdown_table(rows)]


def _speed(one: Record | None) -> str:
    return "" if one is None else f"{one['ms']:.3f} ({one['least_bytes_per_s'] / 1e12:.2f})"


def _sweep(ours: Record, torchs: Record) -> list[str]:
    """The operations as a backward pass calls them, a weight at a time."""
    other = {_point(one): one["ns_per_weight"] for one in torchs["samples"]}
    rows = [["operation", "group indices", "D", "d", "ns a weight", "by torch's operations"]]
    for one in ours["samples"]:
        by_torch = f"{other[_point(one)]:.3f}" if _point(one) in other else ""
        sizes = [f"{one['size']:,}", f"{one['d']:,}"]
        rows.append([one["kind"], one["indices"], *sizes, f"{one['ns_per_weight']:.3f}", by_torch])
    return [
        "Both operations as a step calls them, weights of 1,024 x 1,024 one after the other (`--sweep`):",
        markdown_table(rows),
    ]


def _point(sample: Record) -> tuple[Any, ...]:
    return sample["kind"], sample["indices"], sample["size"], sample["d"]


if __name__ == "__main__":
    sys.exit(main())
