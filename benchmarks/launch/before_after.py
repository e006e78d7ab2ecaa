"""Two checkouts of this package where launching operations costs more than arithmetic, in turns, as JSON and a table.

Two versions of one package cannot be in one process. So each round starts a process for either checkout, one after the
other, and the first of them changes from round to round. Within a process the methods take turns, step by step. Full
fine-tuning, the frozen model and LoRA run the same code in both: their ratio is the noise.

python benchmarks/launch/before_after.py --before /path/to/old --after . --rounds 5 --output benchmarks/launch
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpart.studies.bench.launch import LaunchSettings  # not in a process of an older checkout
    from gpart.studies.bench.report import Sheet

PARTS = {"forward": "full", "train": "full", "eval": "frozen", "generate": "frozen"}
"""What each part is compared with."""

METHODS = ["full", "frozen", "lora", "gpart:weights=forward", "gpart:weights=kept", "gpart:weights=recomputed"]
SIDES = ("before", "after")
Samples = dict[str, dict[str, list[list[float]]]]
"""Seconds by part and method, a list for each process."""

Trial = tuple[Callable[[], object], Callable[[], object]]
"""What comes before, and what is timed."""


def main() -> None:
    """Measures and writes, or is one of the processes that measure."""
    if sys.argv[1:] == ["--worker"]:
        print(json.dumps(measure(json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in SIDES:
        parser.add_argument(f"--{side}", type=Path, required=True, help="a checkout")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each checkout")
    parser.add_argument("--steps", type=int, default=21, help="of each method in a process, for each part")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    given = parser.parse_args()
    if min(given.rounds, given.steps) < 1:
        parser.error(f"--rounds and --steps must be 1 or more, got {given.rounds} and {given.steps}")
    record(given)


def record(given: argparse.Namespace) -> None:
    """Starts the processes and writes before_after.json and before_after.md."""
    import torch

    from gpart.studies.bench.launch import LaunchSettings
    from gpart.studies.bench.machine import describe_machine, find_commit, load
    from gpart.studies.bench.report import describe, markdown

    job = make_job(LaunchSettings(rounds=given.steps))
    checkouts = {side: getattr(given, side).resolve() for side in SIDES}
    commits = {side: find_commit(checkout) for side, checkout in checkouts.items()}
    machine = describe_machine(torch.device("cpu")) | {"threads": 1}
    samples: dict[str, Samples] = {side: {part: {} for part in PARTS} for side in SIDES}
    for number in range(given.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            print(f"round {number + 1} of {given.rounds}: {side}", file=sys.stderr)
            for part, found in start(checkouts[side], job).items():
                for method, times in found.items():
                    samples[side][part].setdefault(method, []).append(times)
    machine["load_at_end"] = load()
    command = shlex.join(["python", *sys.argv])
    about = [
        "# Before and after, where launching operations costs more than arithmetic",
        "",
        f"- command: `{command}`",
        *(f"- {side}: commit {commits[side]}" for side in SIDES),
        f"- {given.rounds} processes for each, in turns; {given.steps} steps of each method in each, in shuffled order",
        *describe(machine),
    ]
    content = {"command": command, "machine": machine, "commits": commits, "job": job, "samples": samples}
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "before_after.json").write_text(json.dumps(content, indent=1) + "\n")
    (given.output / "before_after.md").write_text(markdown([sheet(part, samples) for part in PARTS], about))


def make_job(settings: LaunchSettings) -> dict[str, Any]:
    """What a process is told: the same settings and models as ``gpart bench --launch`` has."""
    from gpart.studies.bench.launch import DECODER_TARGETS, ENCODER_TARGETS, decoder_config, encoder_config
    from gpart.studies.bench.steps import PROMPT

    return settings.to_json() | {
        "encoder": encoder_config(settings).to_dict(),
        "decoder": decoder_config(settings).to_dict(),
        "targets": {"encoder": ENCODER_TARGETS, "decoder": DECODER_TARGETS},
        "methods": METHODS,
        "prompt": PROMPT,
    }


def start(checkout: Path, job: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Measures a checkout in a process of its own.

    Returns:
        Seconds by part and method.

    Raises:
        SystemExit: if it fails, or took the package from somewhere else.
    """
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    kept = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "33554432"}  # freed memory stays
    done = subprocess.run(
        [sys.executable, __file__, "--worker"],
        input=json.dumps(job),
        env={**os.environ, **one, **kept, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: the process ended with status {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    if checkout not in Path(found["package"]).parents:
        raise SystemExit(f"{checkout} was to be measured, but the process took {found['package']}")
    samples: dict[str, dict[str, list[float]]] = found["samples"]
    return samples


def sheet(part: str, samples: dict[str, Samples]) -> Sheet:
    """A part's table."""
    from gpart.studies.bench.excess import excesses
    from gpart.studies.bench.launch import YARDSTICK
    from gpart.studies.bench.report import Sheet, label, milliseconds

    flat = {
        side: {method: list(chain.from_iterable(processes)) for method, processes in samples[side][part].items()}
        for side in SIDES
    }
    above = {side: excesses(flat[side], PARTS[part], YARDSTICK) for side in SIDES}
    rows = []
    for method, processes in samples["after"][part].items():
        middles = zip(samples["before"][part][method], processes, strict=True)
        ratio = median(median(after) / median(before) for before, after in middles)
        cells = [milliseconds(kind(flat[side][method])) for kind in (median, min) for side in SIDES]
        cells += [f"{ratio:.3f}", f"{min(flat['after'][method]) / min(flat['before'][method]):.3f}"]
        shares = [above[side][method].share if method in above[side] else None for side in SIDES]
        rows.append([label(method), *cells, *("" if share is None else f"{share:.2f}" for share in shares)])
    times = [f"{side} {kind} ms" for kind in ("median", "minimum") for side in SIDES]
    header = ["method", *times, "after / before", "of minima", *(f"{side} to {label(YARDSTICK)}" for side in SIDES)]
    note = (
        "After / before: median over the rounds of (the process's median / the other's). The last two columns: the excess"
        f" over {label(PARTS[part])} divided by {label(YARDSTICK)}'s; at most 1 is wanted of GPart."
    )
    return Sheet(part, header, rows, note)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The worker, on what both checkouts have: ``gpart.attach``, ``GPartConfig`` and ``cached()``, and other libraries."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    import gpart

    torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    encoder = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**job["encoder"]))
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**job["decoder"]))
    methods = {name: Adapted(name, encoder.train(), decoder.eval(), job) for name in job["methods"]}
    samples = {}
    for part, reference in PARTS.items():
        chosen = {name: one for name, one in methods.items() if name != "frozen" or name == reference}
        with ExitStack() as stack:
            if part in ("eval", "generate"):
                for one in chosen.values():
                    one.prepare_evaluation(stack)
            samples[part] = in_turns({name: one.step(part) for name, one in chosen.items()}, job)
    for times in samples["generate"].values():
        times[:] = [seconds / job["new_tokens"] for seconds in times]
    return {"package": gpart.__file__, "samples": samples}


def in_turns(trials: dict[str, Trial], job: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of each trial's second function, once in each step; the first comes before it and is not timed."""
    shuffle = random.Random(job["seed"])  # noqa: S311  # an order, no secret
    times: dict[str, list[float]] = {name: [] for name in trials}
    gc.disable()
    gc.freeze()  # collecting by hand below is not to go over the models
    for number in range(job["warmup"] + job["rounds"]):
        for name in shuffle.sample(list(trials), len(trials)):
            before, timed = trials[name]
            before()
            gc.collect()
            start = time.perf_counter()
            timed()
            seconds = time.perf_counter() - start
            if number >= job["warmup"]:
                times[name].append(seconds)
    return times


class Adapted:
    """A method on copies of the encoder and of the decoder, and the steps that are timed."""

    def __init__(self, method: str, encoder: Any, decoder: Any, job: dict[str, Any]) -> None:
        import torch

        self.job = job
        self.encoder, adapter = self._apply(method, encoder, job["targets"]["encoder"], ["classifier"])
        self.decoder, generating = self._apply(method, decoder, job["targets"]["decoder"], [])
        self.adapters = [one for one in (adapter, generating) if one is not None]
        trained = [value for value in self.encoder.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        ids, prompt = torch.full(job["shapes"][0], 5), torch.full((1, job["prompt"]), 5)
        self.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.labels = torch.zeros(len(ids), dtype=torch.int64)
        self.prompt = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
        self.prompt |= {"min_new_tokens": job["new_tokens"], "max_new_tokens": job["new_tokens"], "do_sample": False}

    def step(self, part: str) -> Trial:
        """What comes before a timed step of a part, and the step."""
        before = self.train if part == "forward" else lambda: None
        return before, getattr(self, part)

    def forward(self) -> Any:
        """The forward pass to the loss."""
        return self.encoder(**self.batch, labels=self.labels).loss

    def train(self) -> None:
        """A whole training step."""
        self.forward().backward()
        self.optimizer.step()
        self.encoder.zero_grad(set_to_none=True)

    def eval(self) -> None:
        """The forward pass without gradients."""
        import torch

        with torch.no_grad():
            self.encoder(**self.batch)

    def generate(self) -> None:
        """All new tokens."""
        self.decoder.generate(**self.prompt)

    def prepare_evaluation(self, stack: ExitStack) -> None:
        """Leaves train mode; has GPart within ``cached()``."""
        self.encoder.eval()
        for adapter in self.adapters:
            stack.enter_context(adapter.cached())

    def _apply(self, method: str, base: Any, targets: list[str], head: list[str]) -> tuple[Any, Any]:
        """A copy of the model with the method, and GPart's adapter."""
        from peft import LoraConfig, get_peft_model

        from gpart import GPartConfig, attach

        model, (kind, _, weights) = deepcopy(base), method.partition(":weights=")
        if kind == "gpart":
            return model, attach(
                model, GPartConfig(self.job["sizes"]["d"], targets, modules_to_save=head), weights=weights
            )
        model.requires_grad_(False)
        if kind == "lora":
            get_peft_model(
                model, LoraConfig(r=self.job["sizes"]["lora_r"], target_modules=targets)
            )  # changes the model in place
        elif kind == "full":
            for name, value in model.named_parameters():
                value.requires_grad_(name.endswith(tuple(f".{target}.weight" for target in targets)))
        for name in head:
            model.get_submodule(name).requires_grad_(True)
        return model, None


if __name__ == "__main__":
    main()
