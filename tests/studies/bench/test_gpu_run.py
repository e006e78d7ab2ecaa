"""``benchmarks/gpu``: what a step does to the others, that its commands are the package's, the tables, what is carried."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpart.cli.bench_words import read, settings

FOLDER = Path(__file__).parents[3] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], Any]]:
    """Imports a script of the folder, as Python does when one of them is started."""
    known = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in {path.stem for path in FOLDER.glob("*.py")} - known:
        sys.modules.pop(name, None)


def step(load: Any, name: str, code: str, limit: int = 30, reads: str | None = "out.json") -> Any:
    return load("steps").Step(name, limit, [sys.executable, "-S", "-c", code, "{folder}/out.json"], reads)


WRITE = "import sys, json; open(sys.argv[1], 'w').write(json.dumps([1])); "


@pytest.mark.parametrize(
    ("code", "state", "why", "result"),
    [
        (WRITE, "done", "", [1]),
        (WRITE + "print('a'); sys.exit('no memory')", "failed", "exit status 1: no memory", [1]),
        (WRITE + "import os; os.kill(os.getpid(), 9)", "failed", "exit status -9: it printed nothing", [1]),
        ("open(__import__('sys').argv[1], 'w').write('{')", "failed", "no result: Expecting", None),
        ("pass", "failed", "no result: .*No such file", None),
    ],
)
def test_what_is_said_of_a_step(load: Any, tmp_path: Path, code: str, state: str, why: str, result: Any) -> None:
    found = load("run").run_step(step(load, "a", code), 30, tmp_path / "a", tmp_path / "log")
    assert (found["state"], found["result"]) == (state, result)
    assert re.match(f"{why}$" if state == "done" else why, found.get("why", ""))


@pytest.mark.parametrize(
    ("printed", "state", "counts"),
    [
        ("3 passed, 2 deselected in 1.2s", "done", {"passed": 3}),
        ("13 skipped, 345 deselected in 29.10s", "failed", {"skipped": 13}),
        ("ImportError", "failed", {}),
    ],
)
def test_tests_are_counted_and_none_is_no_success(
    load: Any, tmp_path: Path, printed: str, state: str, counts: Any
) -> None:
    found = load("run").run_step(
        step(load, "a", f"print({printed!r})", reads=None), 30, tmp_path / "a", tmp_path / "log"
    )
    assert (found["state"], found["result"]) == (state, counts)


def test_a_step_that_hangs_is_killed_with_what_it_started_and_keeps_what_it_has(load: Any, tmp_path: Path) -> None:
    child = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    start = time.monotonic()
    found = load("run").run_step(step(load, "a", WRITE + child), 2, tmp_path / "a", tmp_path / "log")
    assert time.monotonic() - start < 30
    assert (found["state"], found["why"], found["result"]) == ("timed out", "killed after 2 s", [1])
    for _ in range(100):  # the system may take a moment to bury it
        state = Path("/proc", found["said"].strip(), "stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives")


def test_no_step_stops_another_and_the_file_is_written_before_each(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = load("run"), tmp_path / "out"
    look = f"import json, sys; open(sys.argv[1], 'w').write(open({str(out / 'gpu.json')!r}).read())"
    steps = [
        step(load, "fails", "raise SystemExit(3)"),
        step(load, "hangs", "import time; time.sleep(60)", limit=1),
        step(load, "looks", look),
        step(load, "last", WRITE),
    ]
    monkeypatch.setattr(run, "all_steps", lambda work, trial, device: steps)
    monkeypatch.setattr(run, "PATIENCE", 1)
    machine = step(load, "machine", "import sys; open(sys.argv[1], 'w').write('{\"cuda\": false}')")
    monkeypatch.setattr(run, "Step", lambda *_: machine)
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(out), "--commit", "abc"])
    assert run.main() == 1
    record = json.loads((out / "gpu.json").read_text())
    assert [(name, found["state"]) for name, found in record["steps"].items()] == [
        *(("machine", "done"), ("fails", "failed"), ("hangs", "timed out"), ("looks", "done"), ("last", "done"))
    ]
    seen = record["steps"]["looks"]["result"]
    assert (seen["steps"]["fails"]["why"], seen["steps"]["looks"]["state"]) == (
        "exit status 3: it printed nothing",
        "running",
    )
    assert (record["commit"], record["trial"]) == ("abc", True)
    monkeypatch.setattr(run, "BUDGET", run.LEAST)  # gone once the machine is described
    assert run.main() == 1
    record = json.loads((out / "gpu.json").read_text())
    assert record["steps"]["last"]["state"] == "not run"
    assert record["steps"]["last"]["why"].endswith("of 10 were left")


def test_steps_in_which_no_time_is_measured_run_together(load: Any, tmp_path: Path) -> None:
    """Each of the first two waits for the other; the third comes after them."""
    wait = """
import sys, time
open({own!r}, "w").close()
while not __import__("os").path.exists({other!r}):
    time.sleep(0.05)
"""
    run, (one, other) = load("run"), (str(tmp_path / name) for name in ("one", "other"))
    steps = [
        step(load, "one", wait.format(own=one, other=other) + WRITE),
        step(load, "other", wait.format(own=other, other=one) + WRITE),
    ]
    given = SimpleNamespace(output=tmp_path)
    record = {"budget": 60, "trial": False, "steps": {}}
    run._do(steps, given, record, tmp_path / "work", time.monotonic())
    assert [found["state"] for found in record["steps"].values()] == ["done", "done"]
    together = [each.name for each in load("steps").all_steps(tmp_path, trial=False, device="cuda") if each.together]
    assert together == ["kernels", "tests", "memory-qwen", "memory-roberta"]


def test_a_run_that_is_ended_takes_its_step_with_it(load: Any, tmp_path: Path) -> None:
    run, endless = load("run"), step(load, "a", "import time; time.sleep(60)")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run.run_step, endless, 60, tmp_path / "a", tmp_path / "log")
        while not run._running:
            time.sleep(0.01)
        with pytest.raises(SystemExit, match="143"):
            run._end(15, None)
        assert running.result(30)["why"] == "exit status -9: it printed nothing"
    assert not run._running


@pytest.mark.parametrize("trial", [True, False])
def test_the_steps_are_commands_that_there_are(load: Any, tmp_path: Path, trial: bool) -> None:
    steps = load("steps").all_steps(tmp_path, trial=trial, device="cpu" if trial else "cuda")
    asked = {}
    for one in steps:
        if one.command[1:4] == ["-m", "gpart.cli", "bench"]:
            words = read(one.command[4:])
            asked[one.name] = (words.model, settings(words))
        elif one.command[1] != "-m":
            assert Path(one.command[1]).is_file()
    shapes = {name: given.get("shapes") for name, (_, given) in asked.items()}
    assert shapes["roberta"] == shapes["memory-roberta"] == [(1, 8) if trial else (32, 128)]
    assert shapes["qwen"] == shapes["memory-qwen"] == [(1, 8) if trial else (2, 2048)]
    if not trial:
        assert [asked[name][0] for name in ("roberta", "qwen")] == ["FacebookAI/roberta-base", "Qwen/Qwen2.5-0.5B"]
        assert {asked[name][1]["precision"] for name in ("roberta", "qwen")} == {"bf16-mixed"}
        assert {given["device"] for _, given in asked.values()} == {"cuda"}


def summary(median: float, ratio: float | None) -> dict[str, Any]:
    return {"median": median, "ratio": ratio, "ratio_lower": 0.9, "ratio_upper": 1.1}


@pytest.fixture
def record() -> dict[str, Any]:
    """Of a run in which a step timed out."""
    bench = {
        "model": {"D": 1000},
        "settings": {
            "model": "a/b",
            "shapes": [[32, 128]],
            "precision": "bf16-mixed",
            "rounds": 15,
            "sizes": {"d": 10},
        },
        "timings": [
            {"part": "inject", "summary": {"gpart": summary(9, None), "gpart group indices": summary(9, None)}},
            {"part": "train", "summary": {"floor": summary(0.010, 1.0), "gpart": summary(0.0105, 1.05)}},
            {"part": "eval", "summary": {"gpart": summary(0.002, 1.01)}},
        ],
    }
    peaks = {"floor, gradients freed": 2_000_000, "floor": 3_000_000, "gpart": 2_004_000}
    memory = {"memory": [{"method": name, "peak": peak} for name, peak in peaks.items()]}
    excess = {"lora": {"median": 0.002, "share": 1.0}, "gpart:weights=kept": {"median": 0.001, "share": 0.5}}
    launch = {"timings": [{"part": "train", "excess": excess, "summary": {name: {} for name in excess}}]}
    sample = {"kind": "expand", "indices": "stored", "size": 1000, "d": 10}
    sweep, other = ({"samples": [{**sample, "ns_per_weight": ns}]} for ns in (0.125, 0.5))
    check = {"operation": "expand", "dtype": "float32", "indices": "stored in 16 bits", "seconds": 1.5}
    speed = {"operation": "reduce", "dtype": "float32", "d": 10, "entries": 1000, "indices": "stored"}
    checks = [{**check, "difference": ""}, {**check, "operation": "reduce", "difference": "other numbers"}]
    speeds = [
        {**speed, "by": "torch", "ms": 0.5, "least_bytes_per_s": 1e12},
        {**speed, "by": "triton", "ms": 0.25, "least_bytes_per_s": 2e12},
    ]
    run = {"seconds": 30.5, "test accuracy, best checkpoint": 0.8012}
    results = {"machine": {"device": "A GPU", "copy_bytes_per_s": 3e12, "bf16_flops_per_s": 8e14}, "roberta": bench}
    results |= {"memory-roberta": memory, "launch": launch, "sweep": sweep, "sweep-torch": other, "minilm": run}
    results |= {"kernels": checks, "speeds": speeds, "tests": {"passed": 13}}
    steps = {name: {"state": "done", "result": result} for name, result in results.items()}
    steps["qwen"] = {"state": "timed out", "why": "killed after 75 s", "result": None}
    return {"trial": False, "commit": "abc", "date": "a day", "command": "run", "seconds": 400, "steps": steps}


def test_the_tables_have_what_was_measured_and_say_what_was_not(load: Any, record: dict[str, Any]) -> None:
    text = load("table").section(record)
    assert text.startswith("## On a GPU\n")
    for wanted in [
        "A GPU", "copies 3.00 TB/s", "multiplies 800 TFLOP/s", "GPU tests: 13 passed.",
        "- not whole: qwen, timed out: killed after 75 s",
        "| floor | 10 | 1.000 | 0.900..1.100 |  |  | 3 | +1000.0 |",
        "| GPart | 10.5 | 1.050 | 0.900..1.100 | 2 | 1.010 | 2 | +4.0 |",
        "| train | 2.00 | 0.50 |",
        "**Triton kernels**: 1 of 2 give the reference's numbers; compiled and checked in 3 s.",
        "- reduce float32 stored in 16 bits: other numbers",
        "| reduce | float32 | 10 | 0.250 (2.00) |  | 0.500 (1.00) |",
        "| expand | stored | 1,000 | 10 | 0.125 | 0.500 |",
        "30.5 s with start-up, loading and validation, test accuracy 0.801",
    ]:  # fmt: skip
        assert wanted in text, wanted
    assert "group indices |" not in text.split("Where launching")[0]


def test_a_trial_gives_no_table(
    load: Any, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file, document = tmp_path / "gpu.json", tmp_path / "a.md"
    document.write_text("# A\n\n## Last\n")
    monkeypatch.setattr(sys, "argv", ["table.py", str(file), "--into", str(document)])
    file.write_text(json.dumps({**record, "trial": True}))
    assert load("table").main() == 1
    assert (document.read_text(), "it measures nothing" in capsys.readouterr().err) == ("# A\n\n## Last\n", True)
    file.write_text(json.dumps(record))
    for _ in range(2):  # the second run's section takes the first one's place
        assert load("table").main() == 0
        assert [line for line in document.read_text().splitlines() if line.startswith("#")] == [
            "# A",
            "## On a GPU",
            "## Last",
        ]
    assert doctest.testmod(load("table")).failed == 0


def test_a_carried_model_has_half_the_bytes_and_is_loaded_in_float32(
    load: Any, tmp_path: Path, tiny_encoder: Path
) -> None:
    from transformers import AutoModel

    source = tmp_path / "source"
    AutoModel.from_pretrained(tiny_encoder).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "LICENSE"):
        (source / name).touch()
    carry = load("carry")
    carry.shrink(source, tmp_path / "half")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, tmp_path / "half")]
    assert sizes[1] < 0.65 * sizes[0]
    whole, half = (AutoModel.from_pretrained(folder).state_dict() for folder in (source, tmp_path / "half"))
    for name, value in whole.items():
        assert half[name].dtype == value.dtype
        assert torch.equal(half[name], value.to(torch.bfloat16).to(value.dtype) if value.is_floating_point() else value)


def test_what_git_ignores_is_not_weighed(load: Any) -> None:
    carry = load("carry")
    files = {file.relative_to(carry.ROOT).as_posix() for file in carry.known_files()}
    assert "benchmarks/gpu/carry.py" in files
    assert not any(name.startswith("benchmarks/gpu/carried/") for name in files)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's CUDA and ROCm builds")
def test_the_kernels_compile_for_a_gpu_that_is_not_there(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes more than the compiler. The rest of the kinds are in benchmarks/gpu/compiled.json."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("what the interpreter runs is not compiled")
    compiled = load("compiled")
    for operation, dtype, indices in (
        ("expand", torch.bfloat16, "computed in 64 bits"),
        ("reduce", torch.float16, "stored in 16 bits"),
    ):
        found = compiled.compile_kernel(operation, dtype, indices)
        assert found["bytes"] > 1000
        assert found["registers"] > 0
        assert found["spilled"] == 0
