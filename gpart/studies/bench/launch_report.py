"""A launch bench's result as tables and as JSON, which holds every sample."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gpart.studies.bench.excess import Excess, excesses
from gpart.studies.bench.launch import YARDSTICK, LaunchResult
from gpart.studies.bench.report import (
    Sheet,
    describe,
    describe_model,
    describe_rounds,
    label,
    milliseconds,
    model,
    summaries,
)
from gpart.studies.bench.turns import Timing

_NOTES = {
    "forward": "The forward pass to the loss, in train mode with gradients on, right after a training step that is not"
    " timed: GPart computes its weights from a new theta each time, as in training.",
    "train": "Forward, backward, AdamW on what is trained, zero_grad.",
    "eval": "Forward without gradients; GPart within cached(), LoRA not merged. Full fine-tuning runs what the frozen"
    " model runs, so that its excess is noise.",
    "generate": "Greedy decoding with the cache of keys and values, one sequence; times are per new token; GPart within"
    " cached(), LoRA not merged. Full fine-tuning runs what the frozen model runs, so that its excess is noise.",
}


def excess_of(timing: Timing) -> dict[str, Excess]:
    """The excesses of a part by method."""
    return excesses(timing.samples, timing.reference or "", YARDSTICK)


def sheets(result: LaunchResult) -> list[Sheet]:
    """A table for each part."""
    return [_sheet(timing) for timing in result.timings]


def about(result: LaunchResult, machine: dict[str, Any], command: str) -> list[str]:
    """What was measured, where and when, one fact a line, and how an excess is computed."""
    settings, yardstick = result.settings, label(YARDSTICK)
    meaning = (
        "A method's excess is the median over the rounds of (time - the reference's time in the same round). The column"
        f" 'to {yardstick}' is that excess over {yardstick}'s. It is wanted at most 1 of GPart; a dash stands where"
        f" {yardstick} itself has no excess."
    )
    return [
        "# Where launching operations costs more than arithmetic",
        "",
        f"- command: `{command}`",
        f"- trained and evaluated: {result.encoder.name}, {describe_model(result.encoder)}",
        f"- generates: {result.decoder.name}, {describe_model(result.decoder)}",
        f"- d = {settings.sizes.d}, {yardstick}'s r = {settings.sizes.lora_r}; precision 32",
        f"- {describe_rounds(settings.rounds, settings.warmup, result.heap_kept)}",
        *describe(machine),
        "",
        meaning,
    ]


def content(result: LaunchResult, machine: dict[str, Any], command: str) -> dict[str, Any]:
    """The JSON: settings, machine, every sample and what was computed from them."""
    return {
        "command": command,
        "machine": machine,
        "settings": result.settings.to_json(),
        "heap_kept": result.heap_kept,
        "encoder": model(result.encoder),
        "decoder": model(result.decoder),
        "trained": result.trained,
        "timings": [
            {
                **asdict(timing),
                "summary": {name: asdict(found) for name, found in summaries(timing).items()},
                "excess": {name: asdict(found) for name, found in excess_of(timing).items()},
            }
            for timing in result.timings
        ],
    }


def _sheet(timing: Timing) -> Sheet:
    above = f"ms above {label(timing.reference or '')}"
    shares = [f"to {label(YARDSTICK)}", f"minima to {label(YARDSTICK)}"]
    header = ["method", "median ms", "minimum ms", above, "quartiles", "of minima", *shares]
    found = excess_of(timing)
    rows = []
    for name, summary in summaries(timing).items():
        row = [label(name), milliseconds(summary.median), milliseconds(summary.minimum)]
        rows.append([*row, *(_cells(found[name]) if name in found else [""] * 5)])
    return Sheet(timing.title, header, rows, _NOTES[timing.part])


def _cells(excess: Excess) -> list[str]:
    spread = f"{1e3 * excess.lower:.2f}..{1e3 * excess.upper:.2f}"
    shares = ["-" if share is None else f"{share:.2f}" for share in (excess.share, excess.share_of_minima)]
    return [f"{1e3 * excess.median:.2f}", spread, f"{1e3 * excess.of_minima:.2f}", *shares]
