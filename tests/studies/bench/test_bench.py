"""``gpart bench``: what the contestants are, and a whole run on tiny models."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from gpart.cli import main
from gpart.studies.bench import measuring
from gpart.studies.bench.figure import sweep_figure
from gpart.studies.bench.measuring import prepare
from gpart.studies.bench.memory import FREED, Peak, measure_peak, train_and_measure
from gpart.studies.bench.settings import METHODS, Settings, parse_method
from gpart.studies.bench.steps import Contestant, enter, make_batch
from gpart.studies.bench.subject import Subject, find_subject, trained_parameters
from gpart.studies.bench.sweep import Sample, SweepSettings, expand_all, make_blocks, reduce_all
from gpart.studies.counting.params import Settings as Sizes
from gpart.studies.counting.params import count_parameters

SIZES = Sizes(d=20, lora_r=2, vera_r=3, fourierft_n=10)
WORDS = ["--d", "20", "--lora-r", "2", "--vera-r", "3", "--fourierft-n", "10", "--rounds", "2"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CPU = torch.device("cpu")


def write(folder: Path, **values: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 34}
    values = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": 60, **SMALL, **special}
    return write(tmp_path / "encoder", **values)


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 40}
    return write(tmp_path / "decoder", model_type="gpt2", architectures=["GPT2LMHeadModel"], **sizes)


@pytest.fixture
def subject(encoder: str) -> Subject:
    return find_subject(encoder, SIZES, "32")


def contestant(subject: Subject, name: str) -> Contestant:
    return enter(parse_method(name), subject, subject.build("cpu", 0))


# The contestants


def test_each_contestant_trains_what_gpart_params_counts(encoder: str, subject: Subject) -> None:
    counted = {row.method: row.count for row in count_parameters(encoder, SIZES).rows}
    same = {"lora": "LoRA", "vera": "VeRA", "fourierft": "FourierFT", "unilora": "Uni-LoRA", "gpart": "GPart"}
    wanted = {name: counted[method] for name, method in same.items()} | {"frozen": counted["Linear probe"]}
    head = 16 * 16 + 16 + 2 * 16 + 2
    base = subject.build("cpu", 0)
    for name in METHODS:
        one = enter(parse_method(name), subject, base)
        count = sum(value.numel() for value in trained_parameters(one.model))
        kind = one.method.kind
        assert count == head + wanted.get(kind, subject.plan.size), name
        assert prepare(Settings(encoder, [name], ["train"], [(2, 5)], sizes=SIZES)).trained == {name: count - head}
    assert all(value.requires_grad for value in base.parameters())


def test_the_floor_trains_the_weights_that_gpart_adapts(subject: Subject) -> None:
    floor, gpart = contestant(subject, "floor"), contestant(subject, "gpart")
    assert gpart.adapter is not None
    adapted = {weight.name for weight in gpart.adapter.plan.weights}
    trained = {name for name, value in floor.model.named_parameters() if value.requires_grad}
    assert {name for name in trained if not name.startswith("classifier.")} == adapted
    assert len(adapted) == 4


def test_the_floor_has_no_optimizer_step_and_the_others_have_one(subject: Subject) -> None:
    batch = make_batch(subject, (2, 5), 0, CPU)
    for name in ("frozen", "floor", "full", "lora", "gpart"):
        one = contestant(subject, name)
        before = [value.detach().clone() for value in trained_parameters(one.model)]
        gradients = 0

        def count(_: object) -> None:
            nonlocal gradients
            gradients += 1

        for value in trained_parameters(one.model):
            value.register_post_accumulate_grad_hook(count)
        one.train_step([batch, batch])
        changed = [not torch.equal(a, b) for a, b in zip(before, trained_parameters(one.model), strict=True)]
        # LoRA's A has no gradient while B is 0, but AdamW's weight decay moves it.
        assert all(changed) if name != "floor" else not any(changed), name
        assert gradients == 2 * len(before), name
        assert all(value.grad is None for value in one.model.parameters()), name


def test_the_contestants_start_from_the_same_weights_and_compute_the_same(subject: Subject) -> None:
    batch = make_batch(subject, (3, 7), 0, CPU)
    logits = {}
    for name in METHODS:
        if parse_method(name).kind == "fourierft":
            continue  # its coefficients do not start at 0
        one = contestant(subject, name)
        one.model.eval()
        logits[name] = one.evaluate(batch)
    assert all(torch.allclose(value, logits["frozen"], atol=1e-5) for value in logits.values())
    assert logits["gpart"].equal(logits["frozen"])


def test_a_batch_is_a_function_of_its_seed_and_has_no_padding(subject: Subject) -> None:
    first, again, other = (make_batch(subject, (40, 30), seed, CPU) for seed in (0, 0, 1))
    assert first.ids.equal(again.ids)
    assert first.labels.equal(again.labels)
    assert not first.ids.equal(other.ids)
    assert set(first.ids.unique().tolist()) == set(range(60)) - {1}
    assert (first.labels.shape, set(first.labels.tolist())) == ((40,), {0, 1})


def test_a_decoder_learns_its_own_tokens_and_generates_the_number_asked_for(decoder: str) -> None:
    subject = find_subject(decoder, SIZES, "32")
    assert (subject.task, subject.targets, subject.head) == ("causal-lm", ["c_attn"], [])
    batch = make_batch(subject, (2, 6), 0, CPU)
    assert batch.labels.equal(batch.ids)
    one = contestant(subject, "gpart")
    one.train_step([batch])
    one.model.eval()
    found = one.generate(batch, 5)
    assert found.shape == (2, 11)
    assert found[:, :6].equal(batch.ids)
    contestant(subject, "frozen").train_step([batch])  # it has nothing to train and goes forward alone


@pytest.mark.parametrize(("precision", "stored"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_the_precision_is_lightnings(encoder: str, precision: str, stored: torch.dtype) -> None:
    subject = find_subject(encoder, SIZES, precision)
    one = contestant(subject, "gpart")
    one.train_step([make_batch(subject, (2, 5), 0, CPU)])
    assert one.adapter is not None
    assert one.adapter.theta.dtype == torch.float32
    assert {value.dtype for value in one.adapter.base_parameters().values()} == {stored}
    assert one.evaluate(make_batch(subject, (2, 5), 0, CPU)).dtype == torch.bfloat16


# Memory


def test_a_bench_that_is_broken_off_has_the_memory_of_those_that_were_measured(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure_peak", lambda settings, method: Peak(method, 1, 2, None, 0))
    result = prepare(Settings(encoder, methods=["lora"], parts=["memory"], shapes=[(2, 5)], sizes=SIZES))
    seen = [[peak.method for peak in so_far.peaks] for so_far in measuring.run(result, lambda *_: None)]
    assert seen == [[FREED], [FREED, "floor"], [FREED, "floor", "lora"]]


@pytest.mark.slow  # the same
def test_memory_is_measured_in_a_process_of_its_own(encoder: str) -> None:
    found = measure_peak(Settings(encoder, shapes=[(2, 5)], threads=1, sizes=SIZES), "gpart")
    assert found.method == "gpart"
    assert 10**8 < found.built <= found.peak  # torch alone is more
    assert found.file is not None
    assert 80 < found.file - found.head < 2000
    assert found.head == 4 * (16 * 16 + 16 + 2 * 16 + 2)


@pytest.mark.slow  # processes that import everything
def test_a_process_that_fails_says_why(encoder: str) -> None:
    with pytest.raises(RuntimeError, match=r"memory of prefix ended with status 1: [\s\S]*no method 'prefix'"):
        measure_peak(Settings(encoder, sizes=SIZES), "prefix")


# The sweep


@pytest.mark.parametrize("stored", [True, False])
def test_the_sweep_runs_the_adapters_own_passes(stored: bool) -> None:
    settings = SweepSettings(width=4, weights=[2], at_weights=2, ds=[32], d=5)
    blocks = make_blocks(settings, 2, 5, stored, CPU)
    stack = [torch.arange(16.0).view(4, 4), torch.ones(4, 4)]
    out = [torch.zeros(4, 4) for _ in range(3)]
    groups = torch.cat([part.indices[slice(0, 16)] for (part,) in blocks]).long()
    assert sorted(groups.bincount().tolist()) == [6, 6, 6, 7, 7]
    scaled = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    expand_all(out, scaled, stack, blocks)
    flat = torch.cat([weight.flatten() for weight in stack])
    assert torch.cat([weight.flatten() for weight in out[:2]]).equal(flat + scaled[groups])
    assert not out[2].any()
    assert reduce_all(stack, blocks, 5).equal(torch.zeros(5).index_add_(0, groups, flat))


def test_the_sweep_writes_its_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--width", "8", "--sweep-weights", "1", "3", "--at-weights", "2", "--sweep-d", "1", "5", "128", "--d", "5"]
    words = ["bench", "--sweep", *sizes, "--rounds", "2", "--warmup", "0", "--output", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "sweep.json").read_text())
    points = {(one["size"], one["d"]) for one in found["samples"]}
    assert points == {(64, 5), (192, 5), (128, 1), (128, 5), (128, 128)}
    assert len(found["samples"]) == 4 * len(points)
    for one in found["samples"]:
        assert len(one["seconds"]) == 2
        assert one["ns_per_weight"] == pytest.approx(1e9 * median(one["seconds"]) / one["size"], abs=1e-6)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sweep.md").read_text()
    assert "## over D, at d = 5" in text
    assert "| 192 |" in text
    assert "over d, at D = 128" in capsys.readouterr().out


# A whole run


def test_a_whole_run_writes_every_part_with_every_method(
    encoder: str, decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process: eleven of its own would take a minute to import.
    monkeypatch.setattr(measuring, "measure_peak", train_and_measure)
    folder = tmp_path / "out"
    shapes = ["--shape", "2x5", "--shape", "3x4", "--accumulate", "2", "--generate", decoder, "--new-tokens", "3"]
    assert main(["bench", encoder, *shapes, *WORDS, "--warmup", "0", "--output", str(folder)]) == 0
    found = json.loads((folder / "bench.json").read_text())
    timings = {timing["title"]: timing for timing in found["timings"]}
    every, ours = set(METHODS), {"gpart", "gpart:dropout=0.1", "gpart:indices=computed,weights=recomputed"}
    numbers = {f"{name} group indices" for name in ("gpart", "gpart:dropout=0.1")}
    assert {title: set(timing["samples"]) for title, timing in timings.items()} == {
        "inject": ours | numbers | {"lora", "vera", "fourierft", "unilora"},
        "train 2x5": every,
        "train 3x4": every,
        "train 2 x 2x5": ours | {"floor"},
        "eval 2x5": every - {"floor"},
        "eval 3x4": every - {"floor"},
        f"generate {decoder}": ours | {"frozen"},
    }
    references = {"inject": None, "train": "floor", "eval": "frozen", "generate": "frozen"}
    for timing in timings.values():
        assert timing["reference"] == references[timing["part"]]
        for name, samples in timing["samples"].items():
            assert len(samples) == 2
            summary = timing["summary"][name]
            assert summary["median"] == pytest.approx(median(samples))
            if timing["reference"] is not None:
                base = timing["samples"][timing["reference"]]
                ratios = [own / other for own, other in zip(samples, base, strict=True)]
                assert summary["ratio"] == pytest.approx(median(ratios))
                assert summary["ratio_of_minima"] == pytest.approx(min(samples) / min(base))
    assert [peak["method"] for peak in found["memory"]] == [
        FREED,
        "floor",
        *(name for name in METHODS if name != "floor"),
    ]
    assert {peak["method"] for peak in found["memory"] if peak["file"]} == ours
    assert found["model"]["D"] == 4 * 16 * 16
    assert found["command"].startswith(f"gpart bench {encoder} --shape 2x5")
    text = (folder / "bench.md").read_text()
    assert all(f"## {title}\n" in text for title in timings)
    assert found["heap_kept"] is ("freed memory stayed with the process" in text)
    assert found["heap_kept"] or platform.libc_ver()[0] != "glibc"
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "measuring train 2 x 2x5" in capsys.readouterr().out


def test_the_sweeps_figure_shows_every_point() -> None:
    """Both panels share an axis, and the right one's numbers may be thirty times the left one's."""
    settings = SweepSettings(width=8, weights=[1, 2], d=5, at_weights=2, ds=[1, 5, 128])
    points = {(64, 5): 1.0, (128, 5): 1.0, (128, 1): 0.1, (128, 128): 30.0}
    samples = [
        Sample(size, d, kind, indices, [unit * size * 1e-9] * 3)
        for (size, d), unit in points.items()
        for kind in ("expand", "reduce")
        for indices in ("stored", "computed")
    ]
    figure = sweep_figure(settings, samples)
    figure.canvas.draw()
    for axes, units in zip(figure.axes, ({1.0}, {0.1, 1.0, 30.0}), strict=True):
        low, high = axes.get_ylim()
        drawn = [float(value) for line in axes.get_lines() for value in line.get_ydata()]
        assert {round(value, 6) for value in drawn} == units
        assert low < min(drawn)
        assert max(drawn) < high


def test_parts_and_methods_can_be_chosen_and_references_join(encoder: str, tmp_path: Path) -> None:
    words = ["bench", encoder, "--methods", "gpart", "--parts", "train", "--shape", "2x5", *WORDS]
    assert main([*words, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [(timing["title"], set(timing["samples"])) for timing in found["timings"]] == [
        ("train 2x5", {"floor", "gpart"})
    ]
    assert found["memory"] == []
    before = (tmp_path / "bench.json").read_bytes()
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert (tmp_path / "bench.json").read_bytes() == before
    assert main([*words, "--output", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "bench.json").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which MODEL?"),
        (["no/such"], "no architecture for 'no/such'"),
        (["MODEL", "--methods", "lorra"], "there is no method 'lorra'"),
        (["MODEL", "--shape", "8by64"], "such as 8x64; got '8by64'"),
        (["MODEL", "--shape", "2x33"], "shape 2x33 has 33 tokens"),
        (["MODEL", "--rounds", "0"], "rounds must be a whole number, 1 or more, got 0"),
        (["MODEL", "--d", "1025"], "d=1025 is more than the 1024 weights"),
        (["MODEL", "--fourierft-n", "257"], "FourierFT (n_frequency = 257) cannot be applied to ['query', 'value']"),
        (["MODEL", "--device", "nosuch"], "device 'nosuch' cannot be used here"),
        (["MODEL", "--target-modules", "q_proj"], "'q_proj' matches no module"),
        (["MODEL", "--generate", "MODEL"], "only causal-lm models generate"),
        (["MODEL", "--generate", "DECODER", "--new-tokens", "25"], "25 new tokens after 16 are too many"),
        (
            ["MODEL", "--parts", "inject", "--accumulate", "8"],
            "--accumulate 8 is for the part 'train'; --parts are inject",
        ),
        (["MODEL", "--parts", "eval", "--generate", "a/b"], "--generate a/b is for the part 'generate'"),
        (["MODEL", "--parts", "eval", "train", "--new-tokens", "9"], "--new-tokens 9 is for the part 'generate'"),
        (["google/vit-base-patch16-224"], "google/vit-base-patch16-224 is for image-classification"),
        (["MODEL", "--sweep"], "leave"),
        (["--sweep", "--sweep-d", "0"], "ds must be whole numbers, 1 or more, got [0]"),
        (["--sweep", "--width", "4"], "d=16777216 is more than the 256 weights"),
        (["--sweep", "--rounds", "0"], "rounds must be a whole number, 1 or more, got 0"),
    ],
)
def test_mistakes_are_one_line(
    encoder: str, decoder: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    small = [] if "--sweep" in words or not words else ["--vera-r", "3", "--lora-r", "2"]
    small += ["--shape", "2x5"] if small and "--shape" not in words else []
    small += ["--d", "20"] if small and "--d" not in words else []
    small += ["--fourierft-n", "10"] if small and "--fourierft-n" not in words else []
    replaced = [{"MODEL": encoder, "DECODER": decoder}.get(word, word) for word in words]
    assert main(["bench", *replaced, *small]) == 2
    printed = capsys.readouterr()
    assert len([line for line in printed.err.splitlines() if line]) == 1, printed.err
    assert printed.err.startswith("gpart: error: ")
    assert said in printed.err
