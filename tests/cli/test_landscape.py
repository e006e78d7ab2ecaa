"""``gpart landscape`` on runs of ``gpart fit``, with a tiny encoder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_words import refused

from gpart.cli import main
from gpart.cli.landscape import _device, _told_apart
from gpart.studies.finished_run import LoadedRun, load_run
from gpart.studies.found_run import find_run
from gpart.studies.landscape import measuring
from gpart.studies.landscape.loss import ValidationLoss, validation_loss

Fit = Callable[..., Path]
SHORT = ["--points=3", "--seeds=1", "--steps=2", "--accelerator=cpu"]


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, glue_folder: Path) -> Fit:
    """Makes a run of one epoch in a folder of its own: 60 rows, and 20 that are held out."""
    above = tmp_path_factory.mktemp("runs")

    def made(name: str, *more: str) -> Path:
        folder = above / name
        words = ["fit", "--config=glue/sst2", *(word for word in more if word.startswith("--config"))]
        words += [f"--model.model={tiny_encoder}", f"--data.model={tiny_encoder}", f"--data.path={glue_folder}"]
        words += ["--data.held_out=0.25", "--data.batch_size=8", "--model.lr=0.02", "--trainer.max_epochs=1"]
        words += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={folder}", "--seed_everything=3"]
        words += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        words += ["--trainer.callbacks+=MetricsWriter", f"--trainer.callbacks.path={folder / 'metrics.json'}"]
        assert main([*words, *(word for word in more if not word.startswith("--config"))]) == 0
        return folder

    return made


@pytest.fixture(scope="module")
def gpart(fit: Fit) -> Path:
    return fit("gpart", "--method.d=50")


@pytest.fixture(scope="module")
def lora(fit: Fit) -> Path:
    return fit("lora", "--config=methods/lora", "--method.settings.r=1")


def loaded(run: Path) -> LoadedRun:
    return load_run(find_run(run), "cpu")


def test_the_loss_at_the_trained_point_is_what_validation_printed(gpart: Path, lora: Path) -> None:
    for folder, method, size in ((gpart, "GPartCallback", 50), (lora, "LORA", 2 * 2 * 32)):
        run = loaded(folder)
        assert (run.method, run.vector.size, run.of_head) == (method, size, False)
        assert not any("classifier" in name for name in run.vector.parameters)
        loss = validation_loss(run)
        printed = json.loads((folder / "metrics.json").read_text())["fit"]["last"]["val/loss"]
        assert loss.rows == 20  # the last batch is half as large, and counts half as much
        assert loss.at(run.vector.read()) == pytest.approx(printed, rel=1e-5)


def test_a_loss_depends_on_its_own_point_alone(gpart: Path) -> None:
    run = loaded(gpart)
    loss, trained = validation_loss(run, rows=9), run.vector.read()
    assert loss.rows == 16  # whole batches
    first = loss.at(trained)
    assert loss.at(trained + torch.linspace(-100, 100, len(trained))) != pytest.approx(first, rel=1e-5)
    assert loss.at(trained) == first
    assert loss.digest() == validation_loss(loaded(gpart), rows=9).digest() != validation_loss(run).digest()


def test_the_start_is_made_again_from_the_seed(fit: Fit, gpart: Path) -> None:
    assert not loaded(gpart).start.any()
    still = ("--model.lr=0", "--model.head_lr=0")
    run = loaded(fit("still", "--config=methods/lora", "--method.settings.r=1", *still))
    assert run.start.any()
    assert torch.equal(run.start, run.vector.read())


def test_the_hessians_product_is_the_gradients_derivative(gpart: Path, lora: Path) -> None:
    for folder in (gpart, lora):
        run = loaded(folder)
        run.module.double()
        loss, trained = validation_loss(run, rows=8), run.vector.read()
        assert trained.dtype == torch.float64
        directions = torch.randn(2, len(trained), dtype=torch.float64)

        def gradient(at: torch.Tensor, loss: ValidationLoss = loss) -> torch.Tensor:
            loss.vector.write(at)
            value, _ = loss._of_batch(loss.batches[0], 0)
            parts = torch.autograd.grad(value, list(loss.vector.parameters.values()))
            return torch.cat([part.ravel() for part in parts])

        step = 1e-4 * directions[0]
        wanted = (gradient(trained + step) - gradient(trained - step)) / 2e-4
        loss.vector.write(trained)
        product = loss.hessian_product(directions[0])
        assert product.norm() > 0
        assert torch.allclose(product, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
        other = loss.hessian_product(directions[1])
        assert float(directions[1] @ product) == pytest.approx(float(directions[0] @ other), rel=1e-6)


@pytest.mark.slow  # it measures a plane twice
def test_the_command_draws_goes_on_where_it_was_stopped_and_measures_nothing_twice(
    gpart: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["landscape", f"ours={gpart}", f"LoRA={lora}", "--rows=8", *SHORT, "--output=out"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "ours" in said
    assert "area within" in said
    files = {path.name for path in Path("out").iterdir() if path.name[0] != "."}
    assert files == {"landscape.json", "landscape.md", "landscape.png", "landscape.html", "points.jsonl"}
    first = json.loads(Path("out/landscape.json").read_text())
    runs = {run["name"]: run for run in first["runs"]}
    assert runs["ours"]["surfaces"][0][1][1] == runs["ours"]["loss"]
    assert len({value for row in runs["ours"]["surfaces"][0] for value in row}) == 9
    assert runs["LoRA"]["change"] < runs["LoRA"]["norm"]

    lines = Path("out/points.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * (1 + 9 + 1)
    Path("out/points.jsonl").write_bytes(b"".join(lines[:-4]) + lines[-4][:20])
    jobs: list[measuring.Job] = []
    run_job = measuring._run_job

    def counted(job: measuring.Job, accelerator: str) -> Any:
        jobs.append(job)
        return run_job(job, accelerator)

    monkeypatch.setattr(measuring, "_run_job", counted)
    assert main(words) == 0
    assert len(jobs) == 4
    assert Path("out/points.jsonl").read_bytes().splitlines(keepends=True) == lines
    again = json.loads(Path("out/landscape.json").read_text())
    assert again["runs"] == first["runs"]


def test_of_several_versions_it_is_the_last_runs_best_checkpoint(gpart: Path) -> None:
    found = find_run(gpart)
    names = {path.name for path in found.checkpoint.parent.iterdir()}
    assert names == {"last.ckpt", found.checkpoint.name}
    assert find_run(found.checkpoint) == found
    last = find_run(found.checkpoint.with_name("last.ckpt"))
    assert last.config == found.config.resolve()
    assert last.checkpoint.name == "last.ckpt"


def test_the_last_checkpoint_is_that_of_the_most_steps_in_a_copy_too(tmp_path: Path) -> None:
    """A copy's files have times in any order; the last one knows the best."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("")
    for steps, best in ((8, "a"), (24, "b"), (16, "a")):
        callbacks = {"ModelCheckpoint": {"best_model_path": f"/elsewhere/{best}.ckpt"}}
        file = tmp_path / "checkpoints" / {8: "a.ckpt", 16: "c.ckpt", 24: "b.ckpt"}[steps]
        torch.save({"global_step": steps, "callbacks": callbacks}, file)
        os.utime(file, (100 - steps, 100 - steps))
    assert find_run(tmp_path).checkpoint.name == "b.ckpt"
    (tmp_path / "checkpoints" / "b.ckpt").rename(tmp_path / "checkpoints" / "other.ckpt")
    assert find_run(tmp_path).checkpoint.name == "other.ckpt"  # the best is gone, this is the last


@pytest.mark.parametrize("first", ["a", "b", "c"])
def test_of_several_best_ones_it_is_that_of_the_first_callback_with_a_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whatever order the folder gives its files in."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("")
    states = {
        "ModelCheckpoint{'every_n_train_steps': 2}": {"monitor": None, "best_model_path": "/x/c.ckpt"},
        "ModelCheckpoint{'monitor': 'val/loss'}": {"monitor": "val/loss", "best_model_path": "/x/b.ckpt"},
        "ModelCheckpoint{'monitor': 'val/acc'}": {"monitor": "val/acc", "best_model_path": "/x/a.ckpt"},
    }
    for name in "abc":
        torch.save({"global_step": 3, "callbacks": states}, tmp_path / "checkpoints" / f"{name}.ckpt")
    glob = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: iter(sorted(glob(self, pattern), key=lambda one: one.stem != first))
    )
    assert find_run(tmp_path).checkpoint.name == "b.ckpt"


def test_mistakes_are_told_in_a_line(
    gpart: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = f"--output={tmp_path / 'out'}"
    assert "no run at" in refused(capsys, "landscape", str(tmp_path / "nosuch"), out)
    assert "no finished run" in refused(capsys, "landscape", str(tmp_path / "empty"), out)
    assert "holds several runs" in refused(capsys, "landscape", str(gpart.parent), out)
    assert "two runs have the name 'a'" in refused(capsys, "landscape", f"a={gpart}", f"a={lora}", out)
    assert "points must be an odd number" in refused(capsys, "landscape", str(gpart), "--points=4", out)
    assert not (tmp_path / "out").exists()


def test_the_machine_that_is_recorded_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _device("cpu") == torch.device("cpu")


def test_names_are_the_parts_in_which_paths_differ() -> None:
    studied = [Path(f"runs/SST-2/{method}/seed-0") for method in ("GPart", "LoRA/lr=1")]
    assert _told_apart(studied) == ["GPart", "LoRA/lr=1"]
    assert _told_apart([Path("runs/a"), Path("runs/a")]) == ["a", "a"]
    assert _told_apart([Path("runs/a")]) == ["a"]


@pytest.mark.slow  # a run of each method
@pytest.mark.parametrize(
    ("overlay", "more", "size"),
    [
        ("uni-lora", ["--method.settings.theta_d_length=40"], 40),
        ("vera", ["--method.settings.r=4"], 4 * (4 + 16)),
        ("fourierft", ["--method.settings.n_frequency=6"], 4 * 6),
        ("gpart-hash", ["--method.d=50"], 50),
        ("gpart-fastfood", ["--method.d=50"], 50),
        ("bitfit", [], None),
        ("full-fine-tuning", [], None),
        ("linear-probe", [], 16 * 16 + 16 + 2 * 16 + 2),
    ],
)
def test_every_methods_run_has_a_landscape(
    fit: Fit, tmp_path: Path, overlay: str, more: list[str], size: int | None
) -> None:
    folder = fit(overlay, f"--config=methods/{overlay}", *more)
    words = ["landscape", str(folder), "--rows=8", *SHORT, f"--output={tmp_path}", "--scale=change"]
    assert main([*words, "--normalise=filters", "--span=20"]) == 0  # eight steps have not moved far
    (run,) = json.loads((tmp_path / "landscape.json").read_text())["runs"]
    assert size is None or run["d"] == size
    assert run["of_head"] == (overlay == "linear-probe")
    assert len({value for row in run["surfaces"][0] for value in row}) > 4
    assert run["ritz_values"][0][0] != 0
    names = loaded(folder).vector.parameters
    assert run["of_head"] or not any("classifier" in name for name in names)


@pytest.mark.slow  # starts processes
@pytest.mark.timeout(900)  # which import for a minute where others are at work
def test_several_processes_measure_the_same(gpart: Path, lora: Path, tmp_path: Path) -> None:
    words = ["landscape", f"ours={gpart}", f"LoRA={lora}", "--rows=8", *SHORT]
    assert main([*words, f"--output={tmp_path / 'one'}"]) == 0
    assert main([*words, f"--output={tmp_path / 'two'}", "--workers=2"]) == 0
    one, two = (json.loads((tmp_path / name / "landscape.json").read_text())["runs"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(torch.tensor(a["surfaces"]), torch.tensor(b["surfaces"]), rtol=1e-5)
        assert a["data"] == b["data"]
