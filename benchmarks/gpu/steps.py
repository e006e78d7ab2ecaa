"""The steps after the machine's description, the most wanted first: those at the end may find no time left."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = HERE.parents[1] / "gpart" / "architectures"
CARRIED = HERE / "carried"

METHODS = ["floor", "full", "lora", "unilora", "gpart", "gpart:indices=computed,weights=recomputed"]


@dataclass(frozen=True)
class Step:
    """One process."""

    name: str
    limit: int
    """Seconds."""

    command: list[str]
    """``{folder}`` stands for a folder of the step's own."""

    reads: str | None
    """The file in that folder with its result, as JSON; None counts the tests in what it printed."""

    environment: dict[str, str] = field(default_factory=dict)

    together: bool = False
    """Whether it may run at the same time as its neighbours that may too: no time is measured in it."""


def all_steps(work: Path, *, trial: bool, device: str) -> list[Step]:
    """The steps on a GPU, or the same at a small size.

    Args:
        work: a folder for the small models' configs.
        trial: whether the small size is wanted.
        device: cuda or cpu.
    """
    rounds = ["--rounds", "1", "--warmup", "1"] if trial else ["--rounds", "15"]
    methods = ["floor", "lora", "gpart"] if trial else METHODS
    roberta, qwen = "FacebookAI/roberta-base", "Qwen/Qwen2.5-0.5B"
    if trial:
        roberta, qwen = (_narrowed(name, work) for name in (roberta, qwen))
    # d as in the paper's recipe for GLUE, and as in configs/math/qwen2.5-0.5b.yaml.
    models = {
        "roberta": [roberta, "--shape", "1x8" if trial else "32x128", "--d", "23040"],
        "qwen": [qwen, "--shape", "1x8" if trial else "2x2048", "--d", "23040" if trial else "131072"],
    }
    shared = ["--precision", "bf16-mixed", "--device", device, *rounds, "--methods", *methods]
    dropout = [
        "gpart:dropout=0.1"
    ]  # the paper's for GLUE; it is one method more to time, and its memory is not measured
    benches = {name: [*words, *shared] for name, words in models.items()}
    narrow = ["--layers", "2", "--new-tokens", "2"] if trial else []
    points = ["2"] if trial else ["16", "64"]
    sweep = ["--sweep-weights", *points, "--at-weights", points[0], "--sweep-d", "256", "23040", "--device", device]
    python = sys.executable
    gpu_tests = ["tests/ops", "tests/callbacks/guards"]
    pytest = [python, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider", *gpu_tests]
    minilm = [python, str(HERE / "minilm.py"), str(CARRIED), "{folder}/minilm.json"]
    interpreted = {} if device == "cuda" else {"TRITON_INTERPRET": "1"}
    # On a GPU the step after it compiles them, for that GPU.
    compiled = [Step("compiled", 60, [python, str(HERE / "compiled.py"), "{folder}/compiled.json"], "compiled.json")]
    checks = [python, str(HERE / "triton_checks.py"), device, "{folder}/checks.json"]
    beside = not trial  # a trial's machine is small
    return [
        *(compiled if trial else []),
        Step("kernels", 150, checks, "checks.json", interpreted, beside),
        Step("tests", 150, pytest, None, together=beside),
        _bench("memory-qwen", 150, [*benches["qwen"], "--parts", "memory"], together=beside),
        _bench("memory-roberta", 150, [*benches["roberta"], "--parts", "memory"], together=beside),
        _bench("roberta", 60, [*benches["roberta"], *dropout, "--parts", "inject", "train", "eval"]),
        _bench("qwen", 75, [*benches["qwen"], "--parts", "inject", "train", "eval"]),
        Step("minilm", 75, [*minilm, *(["--trial"] if trial else [])], "minilm.json"),
        _bench("launch", 75, ["--launch", "--device", device, *rounds, *narrow]),
        *([] if trial else [Step("speeds", 60, [python, str(HERE / "triton_speeds.py"), "{folder}/speeds.json"], "speeds.json")]),
        _bench("sweep", 40, ["--sweep", *sweep, *rounds]),
        _bench("sweep-torch", 40, ["--sweep", *sweep, *rounds], {"GPART_BACKENDS": "torch"}),
    ]  # fmt: skip


def _bench(
    name: str, limit: int, words: list[str], environment: dict[str, str] | None = None, together: bool = False
) -> Step:
    """A step that is a ``gpart bench``. It writes its JSON part by part, so that one that is killed leaves what it has."""
    kind = next((kind for kind in ("launch", "sweep") if f"--{kind}" in words), "bench")
    command = [sys.executable, "-m", "gpart.cli", "bench", *words, "--output", "{folder}/bench"]
    return Step(name, limit, command, f"bench/{kind}.json", environment or {}, together)


def _narrowed(name: str, work: Path) -> str:
    """The config of a shipped architecture with two layers and a thousand tokens, as a file."""
    values = json.loads((ARCHITECTURES / f"{name}.json").read_text(encoding="utf-8"))
    del values["_source"]
    values |= {"num_hidden_layers": 2, "vocab_size": 1000}
    folder = work / Path(name).name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return str(folder)
