"""The script that measures two checkouts in turns: its table, and one of its processes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpart import GPartAdapter
from gpart.studies.bench.launch import LaunchSettings, prepare
from gpart.studies.bench.subject import trained_parameters
from gpart.studies.counting.params import Settings as Sizes

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "launch" / "before_after.py"


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("before_after", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_compares_processes_of_one_round(script: Any) -> None:
    """Two processes with two steps each; GPart's excess over full was 3, 1, 7, 1 and is 1, 0, 3, 1, LoRA's is 2."""
    full, lora = [[0.010, 0.010], [0.020, 0.020]], [[0.012, 0.012], [0.022, 0.022]]
    before, after = [[0.013, 0.011], [0.027, 0.021]], [[0.011, 0.010], [0.023, 0.021]]
    samples = {
        side: {"train": {"full": full, "lora": lora, "gpart:weights=kept": own}}
        for side, own in (("before", before), ("after", after))
    }
    found = script.sheet("train", samples)
    assert found.header[:3] == ["method", "before median ms", "after median ms"]
    assert "the excess over full divided by LoRA's" in found.note
    assert found.rows == [
        ["full", "15", "15", "10", "10", "1.000", "1.000", "", ""],
        ["LoRA", "17", "17", "12", "12", "1.000", "1.000", "1.00", "1.00"],
        # Medians of the processes: 12 and 24 before, 10.5 and 22 after: 0.875 and 0.917.
        ["GPart (weights kept)", "17", "16", "11", "10", "0.896", "0.909", "1.00", "0.50"],
    ]


def test_the_checkouts_take_turns_and_every_sample_is_written(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []

    def start(checkout: Path, job: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
        started.append(checkout.name)
        assert (job["rounds"], job["threads"], job["encoder"]["num_hidden_layers"]) == (2, 1, 24)
        return {
            part: {name: [len(started) + 0.0, 1.0] for name in (reference, "lora", "gpart")}
            for part, reference in script.PARTS.items()
        }

    monkeypatch.setattr(script, "start", start)
    given = {side: tmp_path / side for side in script.SIDES}
    script.record(SimpleNamespace(**given, rounds=3, steps=2, output=tmp_path / "out"))
    assert started == ["before", "after", "after", "before", "before", "after"]
    found = json.loads((tmp_path / "out" / "before_after.json").read_text())
    assert found["commits"] == {"before": None, "after": None}
    for side, firsts in (("before", [1, 4, 5]), ("after", [2, 3, 6])):
        assert found["samples"][side]["eval"]["gpart"] == [[first, 1.0] for first in firsts]
    text = (tmp_path / "out" / "before_after.md").read_text()
    assert all(f"## {part}\n" in text for part in script.PARTS)
    assert "3 processes for each, in turns; 2 steps of each method" in text


@pytest.mark.slow  # it imports and measures a checkout in a process of its own
def test_a_process_measures_every_part(script: Any) -> None:
    settings = LaunchSettings(layers=1, width=8, rounds=2, warmup=1, new_tokens=1, sizes=Sizes(d=5, lora_r=2))
    found = script.start(ROOT, script.make_job(settings))
    every = set(script.METHODS)
    wanted = {"forward": every - {"frozen"}, "train": every - {"frozen"}, "eval": every, "generate": every}
    assert {part: set(times) for part, times in found.items()} == wanted
    assert {len(times) for part in found.values() for times in part.values()} == {2}


@pytest.mark.parametrize(
    ("status", "package", "said"),
    [
        (0, "/else/gpart/__init__.py", "/old was to be measured, but the process took /else/gpart/__init__.py"),
        (3, "/old/gpart/__init__.py", "/old: the process ended with status 3"),
    ],
)
def test_a_process_that_fails_or_takes_another_package_is_refused(
    script: Any, monkeypatch: pytest.MonkeyPatch, status: int, package: str, said: str
) -> None:
    """An installed package goes before a checkout that has none, without a word."""
    printed = "a line of something else\n" + json.dumps({"package": package, "samples": {}})
    started: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        started.append(env)
        return SimpleNamespace(returncode=status, stdout=printed)

    monkeypatch.setattr(script.subprocess, "run", run)
    with pytest.raises(SystemExit, match=said):
        script.start(Path("/old"), {})
    assert [(env["PYTHONPATH"], env["OMP_NUM_THREADS"]) for env in started] == [("/old", "1")]


def test_a_process_evaluates_gpart_within_cached_and_generates_per_token(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, within = GPartAdapter.cached, []

    @contextmanager
    def watched(self: GPartAdapter) -> Iterator[None]:
        with cached(self):
            within.append(self)
            yield
            within.remove(self)

    def in_turns(trials: dict[str, Any], job: dict[str, Any]) -> dict[str, list[float]]:
        one = trials["gpart:weights=kept"][1].__self__
        seen.append((one.encoder.training, one.decoder.training, all(adapter in within for adapter in one.adapters)))
        assert (trials["lora"][0] == trials["lora"][1].__self__.train) is (len(seen) == 1)
        return {name: [4.0, 6.0] for name in trials}

    seen: list[tuple[bool, bool, bool]] = []
    monkeypatch.setattr(GPartAdapter, "cached", watched)
    monkeypatch.setattr(script, "in_turns", in_turns)
    threads = torch.get_num_threads()
    settings = LaunchSettings(layers=1, width=8, new_tokens=2, sizes=Sizes(d=5, lora_r=2))
    samples = script.measure(script.make_job(settings))["samples"]
    torch.set_num_threads(threads)
    assert seen == [(True, False, False)] * 2 + [(False, False, True)] * 2
    assert not within
    assert (samples["eval"]["lora"], samples["generate"]["lora"]) == ([4.0, 6.0], [2.0, 3.0])


def test_the_methods_train_what_the_bench_trains(script: Any) -> None:
    settings = LaunchSettings(layers=2, width=8, sizes=Sizes(d=5, lora_r=2))
    result = prepare(settings)
    job = script.make_job(settings)
    encoder, decoder = result.encoder.build("cpu", 0), result.decoder.build("cpu", 0)
    head = sum(value.numel() for value in encoder.classifier.parameters())
    for name in script.METHODS:
        one = script.Adapted(name, encoder, decoder, job)
        trained = sum(value.numel() for value in trained_parameters(one.encoder))
        assert trained - head == result.trained[name], name
        assert sum(value.numel() for value in trained_parameters(one.decoder)) == result.trained[name], name
        assert len(one.adapters) == (2 if name.startswith("gpart") else 0)
