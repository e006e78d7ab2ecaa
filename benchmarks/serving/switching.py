"""Switching between adapters of one base: GPart's Switch, and PEFT's LoRA in the three ways that it has.

    python benchmarks/serving/switching.py --base models/minilm --work /tmp/switching --output benchmarks/serving

makes the adapters in ``--work`` (once), then measures each way in a process of its own, the ways in turns, and writes
``switching.json`` with every number and ``switching.md`` with the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import gpart
from gpart.serving import AdapterStore, Switch

RANK, TARGETS = 4, ["query", "value"]
SHAPES = {"1 x 32": (1, 32), "8 x 64": (8, 64)}
FEWER = {"gpart-own-seeds": 50, "peft-loaded": 100}
"""Ways that are slow, or take much memory, get fewer adapters; the table says so."""

WAYS = {
    "gpart": "GPart, Switch: theta from memory",
    "gpart-own-seeds": "GPart, Switch: 50 adapters, each with a seed of its own",
    "peft-hotswap": "LoRA, hotswap_adapter: from disk",
    "peft-hotswap-memory": "LoRA, hotswap_adapter_from_state_dict: from memory",
    "peft-loaded": "LoRA, 100 adapters, all loaded, set_adapter",
}


def load(base: Path) -> nn.Module:
    """The base, frozen, in eval mode."""
    from transformers import AutoModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: nn.Module = AutoModel.from_pretrained(base)
    return model.eval().requires_grad_(requires_grad=False)


def make(base: Path, work: Path, count: int) -> dict[str, Any]:
    """The adapters on disk; with the same number of trained parameters, and none in a head."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    model = load(base)
    lora = get_peft_model(model, LoraConfig(r=RANK, target_modules=TARGETS))
    trained = sum(value.numel() for value in lora.parameters() if value.requires_grad)
    lora.eval()
    for number in range(count):
        folder = work / "lora" / f"a{number}"
        if number == 0:
            lora.save_pretrained(work / "lora" / "first")
            config = (work / "lora" / "first" / "adapter_config.json").read_text()
            names = {name: value.shape for name, value in load_lora(work / "lora" / "first").items()}
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(number)
        save_file(
            {name: torch.randn(shape) * 0.05 for name, shape in names.items()}, folder / "adapter_model.safetensors"
        )
        (folder / "adapter_config.json").write_text(config)
    adapter = gpart.attach(load(base), gpart.GPartConfig(d=trained, target_modules=TARGETS))
    for number in range(count):
        torch.manual_seed(number)
        with torch.no_grad():
            adapter.theta.normal_(std=0.05)
        adapter.save(work / "gpart" / f"a{number}")
    adapter.detach()
    for number in range(FEWER["gpart-own-seeds"]):
        adapter = gpart.attach(adapter.model, gpart.GPartConfig(d=trained, target_modules=TARGETS, seed=number))
        with torch.no_grad():
            adapter.theta.normal_(std=0.05)
        adapter.save(work / "gpart-own-seeds" / f"a{number}")
        adapter.detach()
    facts = {"trained": trained, "D": adapter.size, "count": count}
    (work / "made.json").write_text(json.dumps(facts))
    return facts


def load_lora(folder: Path) -> dict[str, torch.Tensor]:
    """A LoRA's tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def make_use(way: str, model: nn.Module, work: Path, names: list[str]) -> tuple[nn.Module, Callable[[str], object]]:
    """The model with a way to switch; what is done once for all adapters is done here."""
    if way.startswith("gpart"):
        switch = Switch(model, AdapterStore(work / way))
        return model, switch.use
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter, hotswap_adapter_from_state_dict
    from peft.utils.save_and_load import _insert_adapter_name_into_state_dict

    folder = work / "lora"
    lora = PeftModel.from_pretrained(model, str(folder / names[0])).eval()
    if way == "peft-hotswap":
        return lora, lambda name: hotswap_adapter(lora, str(folder / name), "default", torch_device="cpu")
    if way == "peft-loaded":
        for name in names:
            lora.load_adapter(str(folder / name), adapter_name=name)
        return lora.eval(), lora.set_adapter
    held = {name: _insert_adapter_name_into_state_dict(load_lora(folder / name), "default", "lora_") for name in names}
    config = lora.peft_config["default"]
    return lora, lambda name: hotswap_adapter_from_state_dict(lora, held[name], "default", config)


def resident() -> int:
    """This process's memory now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def clocked(what: Callable[[], object]) -> float:
    """The seconds that something takes."""
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


@torch.no_grad()
def measure(way: str, base: Path, work: Path, count: int, threads: int) -> dict[str, Any]:
    """One way in this process: seconds of each switch and of the two forward passes after it, and memory in bytes."""
    torch.set_num_threads(threads)
    model = load(base)
    names = [f"a{number}" for number in range(min(count, FEWER.get(way, count)))]
    torch.manual_seed(0)
    inputs = {name: torch.randint(1000, 20000, shape) for name, shape in SHAPES.items()}
    plain = {
        name: [clocked(lambda ids=ids: model(input_ids=ids)) for _ in range(60)][10:] for name, ids in inputs.items()
    }
    before = resident()
    ready = time.perf_counter()
    model, use = make_use(way, model, work, names)
    ready = time.perf_counter() - ready
    found: dict[str, Any] = {"plain": plain, "ready": ready, "first_pass": [], "switch": [], "memory_base": before}
    small = inputs["1 x 32"]
    for name in names:
        found["first_pass"].append(clocked(lambda name=name: use(name)))
    found["memory"] = resident() - before
    for key in SHAPES:
        found[f"first {key}"], found[f"second {key}"] = [], []
    for turn, name in enumerate(names):
        found["switch"].append(clocked(lambda name=name: use(name)))
        key, ids = list(inputs.items())[turn % 20 == 0]
        found[f"first {key}"].append(clocked(lambda ids=ids: model(input_ids=ids)))
        if turn % 4 == 0:
            found[f"second {key}"].append(clocked(lambda ids=ids: model(input_ids=ids)))
    found["memory_after"] = resident() - before
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if way == "gpart":
        check(base, work, names[:: max(1, len(names) // 5)], use, model, small)
    return found


def check(
    base: Path, work: Path, names: list[str], use: Callable[[str], object], model: nn.Module, ids: torch.Tensor
) -> None:
    """The switched model gives, to the bit, what the adapter gives alone."""
    for name in names:
        other = load(base)
        gpart.load_adapter(other, work / "gpart" / name)
        use(name)
        if not torch.equal(model(input_ids=ids).last_hidden_state, other(input_ids=ids).last_hidden_state):
            raise SystemExit(f"{name} differs from the adapter alone")


def size_on_disk(folder: Path) -> int:
    """The bytes of an adapter's two files."""
    return sum(file.stat().st_size for file in (folder / "a0").iterdir())


def table(facts: dict[str, Any], runs: dict[str, list[dict[str, Any]]], disk: dict[str, int]) -> str:
    """Medians over all rounds; milliseconds and MiB."""

    def ms(way: str, key: str) -> float:
        return 1000 * median(value for run in runs[way] for value in run[key])

    plain = {key: 1000 * median(v for way in runs.values() for run in way for v in run["plain"][key]) for key in SHAPES}
    columns = ("switch, first time", "switch", "of a forward pass", "expand", "to first output, 1 x 32", "8 x 64")
    columns += ("forward pass after, 1 x 32", "8 x 64")
    lines = [
        f"{facts['count']:,} adapters of {facts['trained']:,} trained parameters, D = {facts['D']:,}; medians in ms.",
        f"The base alone: {plain['1 x 32']:.2f} for 1 x 32 tokens, {plain['8 x 64']:.1f} for 8 x 64.",
        "",
        f"| way | {' | '.join(columns)} |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for way, says in WAYS.items():
        switch, small, large = ms(way, "switch"), ms(way, "second 1 x 32"), ms(way, "second 8 x 64")
        first = ms(way, "first 1 x 32"), ms(way, "first 8 x 64")
        share = f"1/{plain['1 x 32'] / switch:.0f}" if switch < plain["1 x 32"] else f"{switch / plain['1 x 32']:.1f}"
        cells = [f"{ms(way, 'first_pass'):.2f}", f"{switch:.3f}", share, f"{first[0] - small:.2f}"]
        cells += [f"{switch + first[0]:.2f}", f"{switch + first[1]:.1f}", f"{small:.2f}", f"{large:.1f}"]
        lines.append(f"| {says} | {' | '.join(cells)} |")
    columns = ("before the first, s", "memory for all, MiB", "after all were used", "on disk, kB an adapter")
    lines += ["", f"| way | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for way, says in WAYS.items():
        ready, memory, later = (median(run[key] for run in runs[way]) for key in ("ready", "memory", "memory_after"))
        kind = way if way.startswith("gpart") else "lora"
        lines.append(f"| {says} | {ready:.2f} | {memory / 2**20:.0f} | {later / 2**20:.0f} | {disk[kind] / 1000:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="a Transformers folder of a BERT")
    parser.add_argument("--work", type=Path, required=True, help="where the adapters are made")
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=WAYS, help="used by itself: measures one way and prints JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.base, asked.work, asked.count, asked.threads)))
        return
    made = asked.work / "made.json"
    facts = json.loads(made.read_text()) if made.is_file() else make(asked.base, asked.work, asked.count)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(asked.rounds):
        for way in WAYS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", way], stdout=subprocess.PIPE, text=True, check=True
            )
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {turn + 1}: {way}", file=sys.stderr)
    import peft

    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "load": Path("/proc/loadavg").read_text().split()[:3],
        "cores": os.cpu_count(),
        "threads": asked.threads,
        "processor": next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.processor(),
        ),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "gpart": gpart.__version__,
    }
    disk = {kind: size_on_disk(asked.work / kind) for kind in ("gpart", "gpart-own-seeds", "lora")}
    asked.output.mkdir(parents=True, exist_ok=True)
    raw = {"facts": facts, "machine": machine, "disk": disk, "runs": rounded(runs)}
    (asked.output / "switching.json").write_text(json.dumps(raw) + "\n")
    text = f"{machine}\n\n{table(facts, runs, disk)}"
    (asked.output / "switching.md").write_text(text)
    print(text)


def rounded(values: Any) -> Any:
    """Seconds to the microsecond."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return round(values, 6) if isinstance(values, float) else values


if __name__ == "__main__":
    main()
