"""The bench's clockwork: who is timed when, and what the numbers come to."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest
import torch

from gpart.studies.bench import sweep
from gpart.studies.bench.settings import Settings, find_device, from_json, parse_method, parse_shape
from gpart.studies.bench.sweep import SweepSettings, run_sweep
from gpart.studies.bench.timing import Trial, interleave, quantile, summarize
from gpart.studies.bench.turns import Turns


class Clock:
    """Stands still but for what the trials take."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds


def test_every_trial_is_timed_once_in_each_round_and_the_warm_up_is_thrown_away() -> None:
    clock, ran = Clock(), []

    def trial(name: str, seconds: float) -> Trial:
        def run() -> None:
            ran.append(name)
            # The n-th run of a trial takes n seconds more.
            clock.take(seconds + ran.count(name))

        return Trial(run)

    told: list[tuple[int, int]] = []
    trials = {"a": trial("a", 10), "b": trial("b", 20), "c": trial("c", 30)}
    found = interleave(trials, 3, 2, clock=clock, tell=lambda *step: told.append(step))
    assert found == {"a": [13, 14, 15], "b": [23, 24, 25], "c": [33, 34, 35]}
    rounds = [ran[at : at + 3] for at in range(0, 15, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert told == [(done, 15) for done in range(1, 16)]


def test_the_order_within_the_rounds_is_shuffled_by_the_seed() -> None:
    def order(seed: int) -> list[str]:
        ran: list[str] = []
        trials = {name: Trial(lambda name=name: ran.append(name)) for name in "abcd"}
        interleave(trials, 8, seed=seed)
        return ran

    first, again, other = order(1), order(1), order(2)
    assert first == again
    assert first != other
    assert len({tuple(first[at : at + 4]) for at in range(0, 32, 4)}) > 3


def test_only_the_run_is_between_the_readings_of_the_clock_and_the_device_is_waited_for() -> None:
    clock, events = Clock(), []

    def note(event: str, seconds: float) -> None:
        events.append(event)
        clock.take(seconds)

    def read() -> float:
        events.append("clock")
        return clock.now

    trial = Trial(lambda: note("run", 1), lambda: note("before", 100), lambda: note("after", 1000))
    found = interleave({"a": trial}, 1, synchronize=lambda: note("wait", 0.25), clock=read)
    assert events == ["before", "wait", "clock", "run", "wait", "clock", "after"]
    assert found == {"a": [1.25]}


def test_the_device_that_is_waited_for_is_the_contestants_own(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device=None: waited.append(device))
    device = torch.device("cuda:1")
    Turns(device, rounds=1, warmup=0, seed=0, tell=lambda *_: None).time({"a": Trial(list)}, "train", "train 1x1")
    assert waited == [device, device]


def test_the_sweep_waits_for_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    device = torch.device("meta", 1)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device=None: waited.append(device))
    monkeypatch.setattr(sweep, "find_device", lambda name: device)
    monkeypatch.setattr(sweep, "make_blocks", lambda *_: [])
    monkeypatch.setattr(sweep, "reduce_all", lambda *_: None)
    run_sweep(SweepSettings(width=2, weights=[1], d=1, at_weights=1, ds=[1], rounds=1, warmup=0), lambda *_: None)
    assert waited
    assert set(waited) == {device}


def test_no_garbage_is_collected_by_itself_while_it_is_timed() -> None:
    seen: list[bool] = []

    def fail() -> None:
        raise RuntimeError("broken off")

    interleave({"a": Trial(lambda: seen.append(gc.isenabled()))}, 2)
    assert (seen, gc.isenabled()) == ([False, False], True)
    with pytest.raises(RuntimeError, match="broken off"):
        interleave({"a": Trial(fail)}, 1)
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_the_statistics_are_of_the_same_round() -> None:
    found = summarize({"floor": [1.0, 2.0, 10.0, 4.0], "own": [3.0, 2.0, 5.0, 8.0]}, "floor")
    own = found["own"]  # ratios 3, 1, 0.5, 2
    assert (own.median, own.minimum, own.lower, own.upper) == (4.0, 2.0, 2.75, 5.75)
    assert (own.ratio, own.ratio_lower, own.ratio_upper, own.ratio_of_minima) == (1.5, 0.875, 2.25, 2.0)
    assert (found["floor"].ratio, found["floor"].ratio_of_minima) == (1.0, 1.0)
    assert summarize({"own": [3.0]})["own"].ratio is None


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.25, 0.5, 0.9, 1.0)] == [1, 1.5, 2, 2.8, 3]


# Settings


@pytest.mark.parametrize("text", ["8by64", "8x", "x64", "0x64", "8x0", "8x64x2", " 8x64", "-8x64"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"batch x tokens, such as 8x64; got '{text}'"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lorra", "no method 'lorra'; there are frozen, floor, full, lora"),
        ("lora:dropout=0.1", "only gpart has settings"),
        ("gpart:size=3", "no setting 'size'; it has dropout, indices, weights"),
        ("gpart:", "no setting ''"),
        ("gpart:dropout=1", "dropout must be a number from 0 to below 1, got '1'"),
        ("gpart:dropout=some", "got 'some'"),
        ("gpart:dropout=nan", "got 'nan'"),
        ("gpart:indices=kept", "indices must be one of auto, stored, computed, got 'kept'"),
        ("gpart:weights=stored", "weights must be one of auto, kept, forward, recomputed, got 'stored'"),
        ("gpart:dropout=0,dropout=0.1", "has dropout twice"),
    ],
)
def test_a_method_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings("model", methods=["gpart", text])


def test_gparts_settings_are_read_from_its_name() -> None:
    method = parse_method("gpart:indices=computed,weights=recomputed,dropout=0.25")
    assert (method.kind, method.indices, method.weights, method.dropout) == ("gpart", "computed", "recomputed", 0.25)
    assert parse_method("gpart").indices == "auto"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rounds": 0}, "rounds must be a whole number, 1 or more, got 0"),
        ({"warmup": -1}, "warmup must be a whole number, 0 or more, got -1"),
        ({"accumulate": 0}, "accumulate .* got 0"),
        ({"threads": 0}, "threads .* got 0"),
        ({"new_tokens": 0}, "new_tokens .* got 0"),
        ({"precision": "16"}, "precision must be one of 32, bf16-mixed, bf16-true, got '16'"),
        ({"parts": ["trane"]}, "no part 'trane'; there are memory, inject, train, eval, generate"),
        ({"methods": []}, "methods must name at least one"),
        ({"shapes": []}, "shapes must name at least one"),
    ],
)
def test_a_setting_outside_its_range_is_refused_with_its_value(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings("model", **wrong)


def test_settings_go_through_json_unchanged() -> None:
    settings = Settings("model", methods=["gpart"], shapes=[(2, 3), (4, 5)], threads=1)
    assert from_json(settings.to_json()) == settings


def test_the_references_join_the_methods_once() -> None:
    settings = Settings("model", methods=["gpart", "floor", "gpart"])
    assert [method.text for method in settings.chosen("floor")] == ["floor", "gpart"]
    assert [method.text for method in settings.chosen()] == ["gpart", "floor"]


@pytest.mark.parametrize("name", ["meta", "nosuch", "cuda:999"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here"):
        find_device(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_stays_where_it_is_asked_to(kept: bool) -> None:
    """By page faults, in a process of its own: forty megabytes in blocks that glibc gives back by itself, and then not."""
    code = (
        "import sys, resource; from gpart.studies.bench.heap import keep_freed_memory;"
        "assert not int(sys.argv[1]) or keep_freed_memory();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use():\n"
        "    before = faults(); blocks = [bytearray(1 << 20) for _ in range(40)]\n"
        "    for block in blocks: block[::4096] = bytes(256)\n"
        "    blocks.clear(); return faults() - before\n"
        "for _ in range(3): use()\n"
        "print(use())"
    )
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    plain |= {} if kept else {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", code, str(int(kept))]
    faults = int(subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout)
    assert faults < 100 if kept else faults > 5000
