"""``gpart bench --launch``: what is compared with what, the excess, and a whole run on tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from gpart import GPartAdapter
from gpart.cli import main
from gpart.errors import GPartError
from gpart.studies.bench import turns
from gpart.studies.bench.excess import excesses
from gpart.studies.bench.figure import _draw_bars, excess_figure
from gpart.studies.bench.launch import METHODS, REFERENCES, LaunchResult, LaunchSettings, prepare, run
from gpart.studies.bench.launch_report import sheets
from gpart.studies.bench.report import Sheet
from gpart.studies.bench.steps import Contestant
from gpart.studies.bench.terminal import as_table
from gpart.studies.bench.turns import Timing
from gpart.studies.counting.params import Settings as Sizes

TINY = {"layers": 2, "width": 8, "new_tokens": 2, "rounds": 2, "warmup": 0}
WORDS = ["--layers", "2", "--width", "8", "--d", "5", "--lora-r", "2", "--rounds", "2"]
SAMPLES = {"full": [1.0, 2.0, 4.0], "lora": [3.0, 3.0, 8.0], "gpart": [4.0, 2.5, 5.0]}
"""Of the differences to full, LoRA's are 2, 1, 4 and GPart's 3, 0.5, 1."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(**own: Any) -> LaunchResult:
    return prepare(LaunchSettings(**{**TINY, "sizes": Sizes(d=5, lora_r=2), **own}))


def measured(*timings: Timing) -> LaunchResult:
    result = tiny()
    result.timings.extend(timings)
    return result


# The excess


def test_an_excess_is_of_the_same_round_and_is_divided_by_the_yardsticks() -> None:
    found = excesses(SAMPLES, "full", "lora")
    assert set(found) == {"lora", "gpart"}
    lora, gpart = found["lora"], found["gpart"]
    assert (lora.median, lora.lower, lora.upper, lora.of_minima) == (2.0, 1.5, 3.0, 2.0)
    assert (lora.share, lora.share_of_minima) == (1.0, 1.0)
    assert (gpart.median, gpart.lower, gpart.upper, gpart.of_minima) == (1.0, 0.75, 2.0, 1.5)
    assert (gpart.share, gpart.share_of_minima) == (0.5, 0.75)


def test_without_an_excess_of_the_yardstick_there_is_no_share() -> None:
    even = excesses({"full": [1.0, 2.0], "lora": [1.0, 3.0], "gpart": [2.0, 3.0]}, "full", "lora")["gpart"]
    assert (even.share, even.share_of_minima) == (2.0, None)
    faster = excesses({"full": [3.0], "lora": [1.0], "gpart": [2.0]}, "full", "lora")["gpart"]
    assert (faster.median, faster.share, faster.share_of_minima) == (-1.0, None, None)


def test_the_table_shows_the_excess() -> None:
    samples = {name: [seconds / 100 for seconds in times] for name, times in SAMPLES.items()}
    table, other = sheets(
        measured(
            Timing("train", "train 1x4", "full", samples),
            Timing("eval", "eval 1x4", "frozen", {"frozen": [0.02], "lora": [0.01], "gpart": [0.03]}),
        )
    )
    columns = ["ms above full", "quartiles", "of minima", "to LoRA", "minima to LoRA"]
    assert table.header == ["method", "median ms", "minimum ms", *columns]
    assert table.rows == [
        ["full", "20", "10", "", "", "", "", ""],
        ["LoRA", "30", "30", "20.00", "15.00..30.00", "20.00", "1.00", "1.00"],
        ["GPart", "40", "25", "10.00", "7.50..20.00", "15.00", "0.50", "0.75"],
    ]
    assert other.header[3] == "ms above frozen"
    assert other.rows[2] == ["GPart", "30", "30", "10.00", "10.00..10.00", "10.00", "-", "-"]


def test_the_figure_draws_every_excess_and_marks_the_yardsticks() -> None:
    noise = {"frozen": [2.0, 2.0], "full": [1.0, 2.5], "lora": [4.0, 5.0]}
    timings = [Timing("train", "train 1x4", "full", SAMPLES), Timing("eval", "eval 1x4", "frozen", noise)]
    figure = excess_figure(measured(*timings))
    figure.canvas.draw()
    train, evaluation = figure.axes
    assert [bar.get_width() for bar in train.patches] == [2000.0, 1000.0]
    assert [bar.get_width() for bar in evaluation.patches] == [-250.0, 2500.0]
    for axes, marked in ((train, 2000.0), (evaluation, 2500.0)):
        assert marked in {line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert (train.get_xlim()[0], evaluation.get_xlim()[0] < -625.0) == (0.0, True)  # to the lower quartile
    assert train.get_xlim()[1] > 3000.0  # LoRA's upper quartile


# What is measured


def test_the_models_are_the_issues_and_query_and_value_are_adapted() -> None:
    settings = LaunchSettings()
    assert (settings.layers, settings.width, settings.shapes, settings.threads) == (24, 32, [(1, 4)], 1)
    result = prepare(settings)
    for subject, names in ((result.encoder, ["query", "value"]), (result.decoder, ["q_proj", "v_proj"])):
        assert (subject.targets, subject.plan.size) == (names, 24 * 2 * 32 * 32)
        assert {weight.shape for weight in subject.plan.weights} == {(32, 32)}
    assert (result.encoder.head, result.decoder.head) == (["classifier"], [])
    assert result.encoder.longest() == 4
    assert result.decoder.longest() == 16 + settings.new_tokens
    assert result.trained == {
        "full": 49_152,
        "frozen": 0,
        "lora": 48 * 8 * 64,
        **{name: 512 for name in METHODS if name.startswith(("unilora", "gpart"))},
    }


def test_the_references_and_the_yardstick_join_the_methods_before_them() -> None:
    settings = LaunchSettings(methods=["gpart", "lora"])
    assert [method.text for method in settings.chosen(["train", "eval"])] == ["full", "frozen", "gpart", "lora"]
    assert [method.text for method in settings.chosen(["generate"])] == ["frozen", "gpart", "lora"]
    assert [method.text for method in LaunchSettings().chosen(list(REFERENCES))] == METHODS


@pytest.mark.slow  # it times every method
def test_each_part_times_its_methods_against_its_reference() -> None:
    result = tiny(shapes=[(1, 4), (2, 3), (1, 4)], methods=["floor", *METHODS])
    told: list[str] = []
    titles = [so_far.timings[-1].title for so_far in run(result, lambda title, *_: told.append(title))]
    assert titles == [
        *("forward 1x4", "forward 2x3", "train 1x4", "train 2x3", "eval 1x4", "eval 2x3"),
        "generate 2-layer Llama of width 8",
    ]
    assert list(dict.fromkeys(told)) == titles
    every = {"floor", *METHODS}
    compared = {
        "forward": every - {"frozen"},
        "train": every - {"frozen"},
        "eval": every - {"floor"},
        "generate": every,
    }
    for timing in result.timings:
        assert timing.reference == REFERENCES[timing.part]
        assert set(timing.samples) == compared[timing.part]
        assert {len(times) for times in timing.samples.values()} == {2}
    assert torch.get_num_threads() == 1


def test_a_forward_pass_is_timed_right_after_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that theta is new each time; one forward pass is the step's own, the other one is timed."""
    events: list[tuple[str, str]] = []

    def watch(name: str) -> None:
        original = getattr(Contestant, name)

        def watched(self: Contestant, *values: Any) -> Any:
            events.append((self.method.text, name))
            return original(self, *values)

        monkeypatch.setattr(Contestant, name, watched)

    watch("loss")
    watch("train_step")
    list(run(tiny(methods=["gpart"], parts=["forward"], rounds=3), lambda *_: None))
    for method in ("full", "lora", "gpart"):
        assert [event for name, event in events if name == method] == ["train_step", "loss", "loss"] * 3
    events.clear()
    list(run(tiny(methods=["gpart"], parts=["train"], rounds=1), lambda *_: None))
    assert [event for name, event in events if name == "gpart"] == ["train_step", "loss"]


@pytest.mark.parametrize(("part", "step"), [("eval", "evaluate"), ("generate", "generate")])
def test_gpart_is_evaluated_within_cached(monkeypatch: pytest.MonkeyPatch, part: str, step: str) -> None:
    within: set[int] = set()
    seen: list[tuple[bool, bool]] = []
    cached, original = GPartAdapter.cached, getattr(Contestant, step)

    @contextmanager
    def watched_cached(self: GPartAdapter) -> Iterator[None]:
        with cached(self):
            within.add(id(self))
            yield
            within.discard(id(self))

    def watched(self: Contestant, *values: Any) -> Any:
        if self.adapter is not None:
            seen.append((id(self.adapter) in within, self.model.training))
        return original(self, *values)

    monkeypatch.setattr(GPartAdapter, "cached", watched_cached)
    monkeypatch.setattr(Contestant, step, watched)
    list(run(tiny(methods=["gpart"], parts=[part]), lambda *_: None))
    assert seen == [(True, False)] * 2
    assert not within


def test_a_generations_times_are_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "interleave", lambda trials, *_, **__: {name: [4.0, 6.0] for name in trials})
    result = tiny(methods=["gpart"], parts=["eval", "generate"], new_tokens=2)
    list(run(result, lambda *_: None))
    evaluation, generation = (timing.samples["gpart"] for timing in result.timings)
    assert (evaluation, generation) == ([4.0, 6.0], [2.0, 3.0])


# A whole run


@pytest.mark.slow  # a whole bench
def test_a_whole_run_writes_every_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--launch", *WORDS, "--new-tokens", "2", "--warmup", "1", "--output", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "launch.json").read_text())
    assert found["command"].startswith("gpart bench --launch --layers 2")
    assert (found["settings"]["layers"], found["settings"]["sizes"]["d"], found["settings"]["warmup"]) == (2, 5, 1)
    assert (found["machine"]["threads"], found["encoder"]["D"], found["decoder"]["D"]) == (1, 256, 256)
    assert [timing["part"] for timing in found["timings"]] == list(REFERENCES)
    text = (tmp_path / "launch.md").read_text()
    for timing in found["timings"]:
        assert set(timing["samples"]) >= {*METHODS} - {"frozen"}
        assert set(timing["excess"]) == set(timing["samples"]) - {timing["reference"]}
        assert {len(times) for times in timing["samples"].values()} == {2}
        excess = timing["excess"]["gpart:weights=kept"]
        own, base = (timing["samples"][name] for name in ("gpart:weights=kept", timing["reference"]))
        assert excess["median"] == pytest.approx(sum(own) / 2 - sum(base) / 2)
        assert f"| {1e3 * excess['median']:.2f} | " in text
        assert timing["summary"]["lora"]["minimum"] == min(timing["samples"]["lora"])
        assert f"## {timing['title']}\n" in text
    assert "2-layer RoBERTa of width 8, sequence-classification" in text
    assert "d = 5, LoRA's r = 2" in text
    assert found["heap_kept"] is ("freed memory stayed with the process" in text)
    assert (tmp_path / "launch.png").read_bytes().startswith(b"\x89PNG")
    assert "measuring train 1x4" in capsys.readouterr().out
    before = (tmp_path / "launch.json").read_bytes()
    assert main(words) == 2
    assert (tmp_path / "launch.json").read_bytes() == before


def test_the_excess_figure_has_0_and_the_yardstick_in_it() -> None:
    axes = Figure().subplots()
    _draw_bars(axes, {"lora": (-2.0, -3.0, -1.0), "gpart": (-1.0, -1.5, -0.5)}, "lora", -4.0)
    low, high = axes.get_xlim()
    assert low < -4
    assert high >= 0


def test_parts_methods_and_shapes_can_be_chosen(tmp_path: Path) -> None:
    words = ["--parts", "eval", "--methods", "gpart", "--shape", "2x3", "--threads", "2", "--output", str(tmp_path)]
    assert main(["bench", "--launch", *WORDS, *words]) == 0
    found = json.loads((tmp_path / "launch.json").read_text())
    titles = [(timing["title"], set(timing["samples"])) for timing in found["timings"]]
    assert titles == [("eval 2x3", {"frozen", "lora", "gpart"})]
    assert (found["machine"]["threads"], found["settings"]["warmup"]) == (2, LaunchSettings().warmup)


def test_a_narrow_terminal_cuts_no_number() -> None:
    row = ["GPart (weights recomputed)", "29.5", "28.35", "14.42", "14.14..15.07", "14.83", "2.53", "2.43"]
    header = [
        "method",
        "median ms",
        "minimum ms",
        "ms above full",
        "quartiles",
        "of minima",
        "to LoRA",
        "minima to LoRA",
    ]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(as_table(Sheet("title", header, [row], "")))
        console.print(as_table(Sheet("empty", header, [], "")))
    lines = captured.get().splitlines()
    assert any(all(cell in line for cell in row[1:]) for line in lines), captured.get()
    assert max(map(len, lines)) <= 80


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": 0}, "layers must be a whole number, 1 or more, got 0"),
        ({"width": 0}, "width must be a whole number, 1 or more, got 0"),
        ({"width": 30}, "width must be a multiple of 4.* got 30"),
        ({"rounds": 0}, "rounds .* got 0"),
        ({"warmup": -1}, "warmup must be a whole number, 0 or more, got -1"),
        ({"new_tokens": 0}, "new_tokens .* got 0"),
        ({"threads": 0}, "threads .* got 0"),
        ({"parts": ["inject"]}, "no part 'inject'; there are forward, train, eval, generate"),
        ({"parts": []}, "parts must name at least one"),
        ({"methods": []}, "methods must name at least one"),
        ({"shapes": []}, "shapes must name at least one"),
    ],
)
def test_a_setting_outside_its_range_is_refused_with_its_value(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        LaunchSettings(**wrong)


def test_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no method 'lorra'"):
        LaunchSettings(methods=["lorra"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["some/model", "--launch"], "gpart bench --launch takes no MODEL: leave some/model out"),
        (["some/model", "--sweep"], "gpart bench --sweep takes no MODEL: leave some/model out"),
        (["--launch", "--sweep"], "not allowed with argument --launch"),
        (["--launch", "--precision", "bf16-mixed"], "gpart bench --launch takes no --precision, got bf16-mixed"),
        (["--launch", "--target-modules", "key"], "gpart bench --launch takes no --target-modules, got ['key']"),
        (["--sweep", "--layers", "3"], "gpart bench --sweep takes no --layers, got 3"),
        (["some/model", "--width", "3"], "gpart bench MODEL takes no --width, got 3"),
        (["--launch", "--shape", "1by4"], "such as 8x64; got '1by4'"),
        (["--launch", "--d", "49153"], "d=49153 is more than the 49152 weights"),
        (["--launch", "--lora-r", "0"], "lora_r must be a whole number, 1 or more, got 0"),
        (["--launch", "--device", "nosuch"], "device 'nosuch' cannot be used here"),
        (["some/model", "--parts", "forward"], "there is no part 'forward'; there are memory, inject, train"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("gpart: error: ")
    assert (said in printed, printed.count("\n")) == (True, 1), printed
