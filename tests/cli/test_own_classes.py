"""Classes of one's own in the CLI: found in the current folder, and what is not found says where it was looked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpart.bases.own_classes import not_found
from gpart.cli import main

MINE = """from lightning.pytorch import LightningDataModule


class Texts(LightningDataModule):
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        print("made Texts", size)


class Other:
    pass
"""

PREDICTS = """import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader


class Model(LightningModule):
    def predict_step(self, batch, index):
        return batch.argmax(1)


class Data(LightningDataModule):
    def predict_dataloader(self):
        return DataLoader(torch.eye(3), batch_size=2)


class Writer(BasePredictionWriter):
    def write_on_batch_end(self, trainer, module, prediction, *rest):
        print("wrote", prediction.tolist())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's folder, current, which Python does not look in by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    before = set(sys.modules)
    (tmp_path / "mine_c.py").write_text(MINE)
    (tmp_path / "predicts_c.py").write_text(PREDICTS)
    (tmp_path / "imports_c.py").write_text("import nowhere_c\n")
    (tmp_path / "broken_c.py").write_text("def f(:\n")
    (tmp_path / "kit_c").mkdir()
    (tmp_path / "kit_c" / "__init__.py").write_text("")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0].endswith("_c"):
            del sys.modules[name]


def test_a_class_in_the_current_folder_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config=quickstart", "--data=mine_c.Texts", "--data.size=3", "--print_config"])
    out = capsys.readouterr().out
    assert "class_path: mine_c.Texts" in out
    assert "size: 3" in out


def predict(capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    """What the command prints of a module whose ``predict_step`` returns a tensor."""
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    assert main(["predict", "--model=predicts_c.Model", "--data=predicts_c.Data", *quiet, *more]) == 0
    return capsys.readouterr().out.splitlines()


def test_predictions_that_nothing_writes_are_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [{"idx": at, "prediction": at} for at in range(3)]
    assert [json.loads(line) for line in predict(capsys)] == wanted
    once = predict(capsys, "--trainer.callbacks=PredictionWriter")
    assert [json.loads(line) for line in once] == wanted
    assert predict(capsys, "--trainer.callbacks=predicts_c.Writer") == ["wrote [0, 1]", "wrote [2]"]
    assert predict(capsys, "--output=out.csv") == []
    assert (here / "out.csv").read_text().splitlines() == ["idx,prediction", "0,0", "1,1", "2,2"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "--data=absent_c.X",
            "data: there is no class absent_c.X: no module absent_c in the current folder, {here}, or",
        ),
        (
            "--data.class_path=absent_c.X",
            "data: there is no class absent_c.X: no module absent_c in the current folder",
        ),
        (
            "--data=mine_c.Text",
            "data: there is no class Text in mine_c ({here}/mine_c.py); its classes are Texts, Other\n",
        ),
        ("--data=mine_c.Other", "data: mine_c.Other ({here}/mine_c.py) is no LightningDataModule"),
        ("--data=kit_c.sub.X", "data: there is no class kit_c.sub.X: no module kit_c.sub in {here}/kit_c/__init__.py"),
        (
            "--data=imports_c.X",
            "data: the module imports_c of imports_c.X cannot be imported: No module named 'nowhere_c'",
        ),
        ("--data=broken_c.X", "the module broken_c of broken_c.X cannot be imported: SyntaxError: invalid syntax"),
        ("--trainer.callbacks+=absent_c.X", "trainer.callbacks: there is no class absent_c.X: no module absent_c in"),
        (
            "--trainer.callbacks=Absent",
            "trainer.callbacks: there is no class 'Absent'; classes go by their import path",
        ),
        ("--data=Absent", "data: there is no class 'Absent'; gpart's are GLUEDataModule, "),
        ("--config=mine.yaml", "data: there is no class Text in mine_c ({here}/mine_c.py)"),
    ],
)
def test_what_is_not_found_says_where_it_was_looked_for(
    here: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    (here / "mine.yaml").write_text("data: {class_path: mine_c.Text, init_args: {size: 3}}\n")
    assert main(["fit", "--config=quickstart", word]) == 2
    error = capsys.readouterr().err
    assert said.format(here=here) in error
    assert error.count("\n") == 1


def test_another_mistake_is_told_as_it_is(here: Path) -> None:
    message = "Parser key \"trainer.devices\": Expected a <class 'int'> Given value: absent_c.txt"
    assert not_found(message) is None
    assert not_found("Parser key: Given value: absent_c.X not accessible or invalid") is None
    right = "Parser key \"data\": Problem with given class_path 'mine_c.Texts': no lr"
    sys.path.insert(0, str(here))
    assert not_found(right) is None


@pytest.mark.slow
def test_the_installed_command_finds_it_too(here: Path) -> None:
    """Its sys.path has the folder of the script, not the current one, as with ``python -P``."""
    root = Path(__file__).parents[2]
    code = f"import sys; sys.path.append({str(root)!r}); from gpart.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["fit", "--config=quickstart", "--data=mine_c.Texts", "--print_config"]
    done = subprocess.run([sys.executable, "-P", "-c", code, *words], cwd=here, capture_output=True, text=True)
    assert "class_path: mine_c.Texts" in done.stdout, done.stderr


NET = """import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)  # drawn by the run's seed

    def _loss(self, batch):
        return nn.functional.mse_loss(self.head(self.body(batch[0])), batch[1])

    def training_step(self, batch, index):
        return self._loss(batch)

    def validation_step(self, batch, index):
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], self.hparams.lr)


class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.arange(32.0).view(8, 4) / 32
        return DataLoader(TensorDataset(x, x[:, :1]), 4)

    val_dataloader = train_dataloader
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", ["run", pytest.param("logged", marks=pytest.mark.slow)])
def test_what_looks_at_finished_runs_finds_their_own_class(
    folder: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "net_c.py").write_text(NET)
    path = list(sys.path)

    def command(*words: str) -> int:
        """In a process that has not looked here yet."""
        monkeypatch.setattr(sys, "path", list(path))
        sys.modules.pop("net_c", None)
        return main(list(words))

    method = ["--method=GPartCallback", "--method.d=5", '--method.target_modules=["body"]']
    method += ['--method.modules_to_save=["head"]', "--trainer.callbacks+=SnapshotWriter"]
    run = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder}",
        "--seed_everything=7",
    ]
    run += ["--trainer.logger=false"] if folder == "run" else []  # with one, config.yaml is deeper than the snapshots
    classes = ["--model=net_c.Net", "--data=net_c.Data"]
    assert command("fit", *classes, *method, *run) == 0
    assert command("isometry", folder, "--output", "isometry") == 0
    short = ["--points=3", "--seeds=1", "--steps=0", "--accelerator=cpu", "--workers=2"]
    assert command("landscape", folder, *short, "--output", "landscape") == 0
    (here / "net_c.py").rename(here / "mine_again_c.py")
    for name, files in (("landscape", ""), ("isometry", "model: ")):
        capsys.readouterr()
        assert command(name, folder, "--output", f"none-{name}") == 2
        err = capsys.readouterr().err
        assert f"config.yaml: {files}" in err
        assert f"there is no class net_c.Net: no module net_c in the current folder, {here}, or among installed" in err
