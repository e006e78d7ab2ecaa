"""GLUE's DataModule: which rows go where, what a batch holds, the cache, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from datasets import load_dataset
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from gpart.datamodules import GLUEDataModule
from gpart.datamodules.common.splits import chosen, hold_out
from gpart.datamodules.language import glue
from gpart.datamodules.language.glue import TASKS, TaskName
from gpart.errors import GPartError, GPartFileError
from gpart.lightning_modules import SequenceClassifier


@pytest.fixture
def data(glue_folder: Path, tiny_encoder: Path) -> Any:
    return lambda task="rte", **more: GLUEDataModule(
        task, **{"model": str(tiny_encoder), "path": str(glue_folder), "batch_size": 8, "seed": 0, **more}
    )


def ids(folder: Path, task: str, split: str) -> list[int]:
    return list(load_dataset(str(folder), task)[split]["idx"])


def rows(own: GLUEDataModule, part: str) -> list[int]:
    return list(own.parts[part]["idx"])


class Recorder(LightningModule):
    """Notes the ids of the rows that each step is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list[int]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.seen["train"] += batch["idx"]
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.seen["val"] += batch["idx"]
        self.log("val/score", float(self.current_epoch), batch_size=1)

    def test_step(self, batch: dict[str, Any], index: int) -> None:
        self.seen["test"] += batch["idx"]

    def predict_step(self, batch: dict[str, Any], index: int) -> None:
        assert "labels" not in batch
        self.seen["predict"] += batch["idx"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("task", ["rte", "stsb", "mnli"])
def test_by_row_ids_the_held_out_part_is_not_trained_on_and_the_validation_set_chooses_nothing(
    task: str, data: Any, glue_folder: Path, tmp_path: Path
) -> None:
    """The whole of fit, with its sanity check and its choice of a checkpoint, then test and predict."""
    module, keeper = Recorder(), ModelCheckpoint(tmp_path, monitor="val/score", mode="max")
    trainer = Trainer(
        max_epochs=2, callbacks=[keeper], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    own = data(task, held_out=0.25)
    trainer.fit(module, datamodule=own)
    assert keeper.best_model_path
    fitted = {name: set(rows) for name, rows in module.seen.items()}
    assert (fitted["test"], fitted["predict"]) == (set(), set())
    train = ids(glue_folder, task, "train")
    assert fitted["train"] | fitted["val"] == set(train)
    assert not fitted["train"] & fitted["val"]
    assert len(fitted["val"]) == 20
    assert Counter(module.seen["train"]) == dict.fromkeys(fitted["train"], 2)  # each once an epoch
    trainer.validate(module, datamodule=own, verbose=False)
    trainer.test(module, datamodule=own, verbose=False)
    trainer.predict(module, datamodule=own)
    suffix = "_matched" if task == "mnli" else ""
    assert module.seen["test"] == ids(glue_folder, task, f"validation{suffix}")
    assert module.seen["predict"] == ids(glue_folder, task, f"test{suffix}")
    assert set(module.seen["val"]) == fitted["val"]
    assert set(module.seen["train"]) == fitted["train"]


def test_the_parts_come_from_ids_and_seed_alone(data: Any) -> None:
    def held(**more: Any) -> list[int]:
        own = data(**more)
        torch.manual_seed(len(more))
        own.setup("validate")
        return rows(own, "val")

    first = held()
    assert held(batch_size=3, max_length=5) == first
    assert held(seed=1) != first
    assert len(held(held_out=0.5)) == 40
    # Pinned: a change of the rule would mix what earlier runs trained on with what they held out.
    assert first == [5003, 5009, 5090, 5126, 5150, 5192, 5207, 5231]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_columns_labels_and_strata(task: str, data: Any, glue_folder: Path) -> None:
    own = data(task, held_out=0.2)
    own.prepare_data()
    for stage in ("fit", "validate", "test", "predict"):
        own.setup(stage)
    assert {name: len(part) for name, part in own.parts.items()} == {"train": 64, "val": 16, "test": 24, "predict": 12}
    whole = load_dataset(str(glue_folder), task)["train"]
    share = Counter(map(round, whole["label"]))
    for label, count in Counter(map(round, own.parts["val"]["labels"])).items():
        assert abs(count - share[label] * 0.2) < 1
    batch = next(iter(own.val_dataloader()))
    assert batch["labels"].dtype == (torch.int64 if TASKS[task].labels else torch.float32)
    of_row = dict(zip(whole["idx"], whole["label"], strict=True))
    assert batch["labels"].tolist() == [pytest.approx(of_row[idx]) for idx in batch["idx"]]
    # Both texts are in: two separators, or one.
    assert set((batch["input_ids"] == 3).sum(1).tolist()) == {len(TASKS[task].columns)}


def test_the_labels_are_in_glues_order() -> None:
    """From the feature description of nyu-mll/glue: entailment is 0, but in WNLI 1."""
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["wnli"].labels == ("not_entailment", "entailment")
    assert TASKS["cola"].labels == ("unacceptable", "acceptable")
    assert TASKS["mrpc"].labels == ("not_equivalent", "equivalent")
    assert TASKS["qqp"].labels == ("not_duplicate", "duplicate")
    assert TASKS["stsb"].labels == ()


def test_another_order_of_labels_is_refused(data: Any, glue_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(glue_folder, other)
    for path in (other / "wnli").iterdir():
        shutil.copy(path, other / "rte" / path.name)
    with pytest.raises(GPartError, match=r"are \['not_entailment', 'entailment'\], GLUE's are \['entailment'"):
        data(path=str(other)).setup("fit")


def test_a_text_column_of_another_name_is_refused(data: Any, glue_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "columns"
    shutil.copytree(glue_folder, other)
    for path in (other / "qnli").iterdir():  # its columns are question and sentence
        shutil.copy(path, other / "rte" / path.name)
    said = r"split 'train' of rte has the columns \['question', .*\]; expected \['sentence1', 'sentence2', 'label'\]"
    with pytest.raises(GPartError, match=said):
        data(path=str(other)).setup("fit")


def test_damaged_rows_are_named(data: Any, glue_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "damaged"
    shutil.copytree(glue_folder, other)
    for path in (other / "rte").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])  # the footer, and so the columns, can be read
    with pytest.raises(GPartError, match=f"GLUE task 'rte' at '{other}' can't be read: ") as caught:
        data(path=str(other)).setup("fit")
    assert not isinstance(caught.value, GPartFileError)


def test_the_choices_in_the_help_are_the_tasks() -> None:
    assert get_args(TaskName) == tuple(TASKS)
    assert get_type_hints(GLUEDataModule.__init__)["task"] == TaskName


def test_padding_is_by_batch_and_cutting_by_max_length(data: Any) -> None:
    own = data(max_length=9)
    own.setup("fit")
    for batch in own.train_dataloader():
        lengths = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape[1] == lengths.max() <= 9
    shapes = {batch["input_ids"].shape[1] for batch in data_batches(data(batch_size=1))}
    assert len(shapes) > 1


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_group_by_length_pads_less_and_has_the_same_rows(data: Any, part: str) -> None:
    def padding(own: GLUEDataModule) -> tuple[int, list[int]]:
        own.setup("test" if part == "test" else "fit")
        batches = list(getattr(own, f"{part}_dataloader")())
        padded = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
        return padded, sorted(idx for batch in batches for idx in batch["idx"])

    (mixed, rows_mixed), (grouped, rows_grouped) = (
        padding(data(batch_size=4, held_out=0.4)),
        padding(data(batch_size=4, held_out=0.4, group_by_length=True)),
    )
    assert rows_grouped == rows_mixed
    assert grouped == mixed if part == "val" else grouped < mixed / 2


def test_what_is_predicted_stays_in_order(data: Any) -> None:
    own = data(batch_size=4, group_by_length=True)
    own.setup("predict")
    assert [idx for batch in own.predict_dataloader() for idx in batch["idx"]] == list(own.parts["predict"]["idx"])


def data_batches(own: GLUEDataModule) -> list[dict[str, Any]]:
    own.setup("fit")
    return list(own.train_dataloader())


def test_training_is_shuffled_by_the_global_seed_and_scoring_is_in_order(data: Any) -> None:
    def order(seed: int) -> list[int]:
        seed_everything(seed)
        own = data()
        own.setup("fit")
        first, again = ([idx for batch in own.train_dataloader() for idx in batch["idx"]] for _ in range(2))
        assert sorted(first) == rows(own, "train") != first
        assert first == again
        return first

    assert order(0) == order(0) != order(1)


@pytest.mark.parametrize("every", [3, 8, 9])
def test_a_resumed_run_sees_the_rows_that_it_would_have_seen(every: int, data: Any, tmp_path: Path) -> None:
    """An epoch has 9 steps: the checkpoint is of the first epoch's middle, its last step but one, its last step."""

    def fit(limit: int, path: Path | None = None) -> list[int]:
        seed_everything(0)
        module = Recorder()
        keeper = ModelCheckpoint(tmp_path / str(limit), every_n_train_steps=every, save_top_k=-1, filename="{step}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=limit, callbacks=[keeper], num_sanity_val_steps=0, **quiet)
        trainer.fit(module, datamodule=data(held_out=0.1), ckpt_path=path)
        return module.seen["train"]

    whole = fit(20)
    begun = fit(every)
    assert begun == whole[: len(begun)]
    resumed = fit(20, tmp_path / str(every) / f"step={every}.ckpt")
    assert begun + resumed == whole
    assert whole[:72] != whole[72:144]  # the second epoch has an order of its own
    assert sorted(whole[:72]) == sorted(whole[72:144])


@pytest.mark.parametrize("limit", [{"max_steps": 20}, {"max_epochs": 3}])
@pytest.mark.parametrize("val", [{}, {"limit_val_batches": 0}])
@pytest.mark.parametrize(
    "when",
    [{"every_n_epochs": 1}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, {"every_n_train_steps": 9}],
    ids=["validation end", "epoch end", "last step"],
)
def test_a_run_that_resumes_from_an_epochs_end_goes_on_with_the_next(
    limit: dict[str, int], val: dict[str, int], when: dict[str, Any], data: Any, tmp_path: Path
) -> None:
    """Lightning takes another way for each: by steps or epochs, with and without validation, saved at which moment."""

    class Cut(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("power cut")

    def fit(name: str, *callbacks: Callback, path: Path | None = None) -> list[int]:
        seed_everything(0)
        module = Recorder()
        keeper = ModelCheckpoint(tmp_path / name, save_top_k=-1, filename="{step}", **when)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(callbacks=[keeper, *callbacks], num_sanity_val_steps=0, **quiet, **val, **limit)
        trainer.fit(module, datamodule=data(held_out=0.1), ckpt_path=path)
        return module.seen["train"]

    whole = fit("whole")
    with pytest.raises(RuntimeError, match="power cut"):
        fit("cut", Cut())
    assert fit("again", path=tmp_path / "cut" / "step=9.ckpt") == whole[72:]


def test_texts_are_tokenised_once(data: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second DataModule, as in another process, finds everything in the cache."""
    first = data()
    first.prepare_data()
    first.setup("fit")
    calls = []
    real = glue.load_tokenizer

    def counting(model: str) -> Any:
        tokenizer = real(model)
        cls = type(tokenizer)
        own = type(
            cls.__name__, (cls,), {"__call__": lambda self, *a, **k: calls.append(a) or cls.__call__(self, *a, **k)}
        )
        tokenizer.__class__ = own
        return tokenizer

    monkeypatch.setattr(glue, "load_tokenizer", counting)
    second = data()
    for stage in ("fit", "test", "predict"):
        second.setup(stage)
    assert calls == []
    assert second.parts["train"][:] == first.parts["train"][:]
    data(max_length=7).setup("fit")
    assert calls  # another length is another result
    calls.clear()
    data("cola").setup("fit")
    assert calls


def test_another_tokenizer_is_another_result(data: Any, tiny_encoder: Path, tmp_path: Path, own_cache: Path) -> None:
    data().setup("fit")
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder, other)
    for path in other.iterdir():
        if path.suffix in (".json", ".txt") and "film" in path.read_text():
            path.write_text(path.read_text().replace("film", "FILM"))
    one, two = data(), data(model=str(other))
    one.setup("fit")
    two.setup("fit")
    assert rows(one, "train") == rows(two, "train")
    assert one.parts["train"]["input_ids"] != two.parts["train"]["input_ids"]


def test_a_smaller_training_set_is_stratified_and_part_of_a_larger(data: Any) -> None:
    def train(size: int | None) -> GLUEDataModule:
        own = data(train_size=size)
        own.setup("fit")
        return own

    small, large = train(20), train(40)
    assert set(rows(small, "train")) < set(rows(large, "train")) < set(rows(train(None), "train"))
    assert Counter(small.parts["train"]["labels"]) == {0: 10, 1: 10}
    assert rows(small, "val") == rows(large, "val")


@pytest.mark.parametrize(("part", "size"), [(0.1, 10), (0.333, 33), (0.001, 1), (0.99, 99)])
def test_the_size_held_out_is_exact_whatever_the_strata(part: float, size: int) -> None:
    every = [(min(i % 7, 3), i) for i in range(100)]
    stay, held = hold_out(every, part, 0)
    assert len(held) == size
    assert sorted([*stay, *held]) == list(range(100))
    share = Counter(stratum for stratum, _ in every)
    for stratum, count in Counter(every[at][0] for at in held).items():
        assert abs(count - share[stratum] * size / 100) <= 1


def test_the_choice_does_not_follow_the_rows_order() -> None:
    every = [(0, i) for i in range(50)]
    forward = {every[at][1] for at in chosen(every, range(50), 10, 0)}
    backward = {every[::-1][at][1] for at in chosen(every[::-1], range(50), 10, 0)}
    assert forward == backward
    assert forward != set(range(10))


def test_any_split_can_be_scored_or_labelled(data: Any, glue_folder: Path) -> None:
    own = data("mnli", score_split="validation_mismatched", predict_split="validation_matched")
    own.setup("test")
    own.setup("predict")
    assert rows(own, "test") == ids(glue_folder, "mnli", "validation_mismatched")
    assert rows(own, "predict") == ids(glue_folder, "mnli", "validation_matched")


def test_a_missing_split_matters_only_where_it_is_needed(
    data: Any, glue_folder: Path, tmp_path: Path, own_cache: Path
) -> None:
    """As the real GLUE at hand: validation only, or no test set."""
    other = tmp_path / "glue"
    shutil.copytree(glue_folder, other)
    text = (other / "README.md").read_text()
    (other / "README.md").write_text(text.replace("  - split: test\n    path: rte/test-*.parquet\n", ""))
    own = data(path=str(other))
    own.prepare_data()
    own.setup("fit")
    own.setup("test")
    with pytest.raises(GPartError, match=r"has no split 'test' of rte; it has \['train', 'validation'\]"):
        own.setup("predict")


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"task": "sst5"}, GPartError, "'sst5' is none of GLUE's: cola, sst2"),
        ({"held_out": 0.0}, GPartError, "got 0.0"),
        ({"held_out": 1.0}, GPartError, "got 1.0"),
        ({"held_out": 0.999}, GPartError, "held_out=0.999 of 80 rows"),
        ({"train_size": 73}, GPartError, "from 1 to the 72 rows not held out, got 73"),
        ({"train_size": 0}, GPartError, "from 1 to the 72 rows not held out, got 0"),
        ({"path": "nosuch/folder"}, GPartFileError, "no GLUE task 'rte' at 'nosuch/folder'"),
        ({"score_split": "validation_matched"}, GPartError, "no split 'validation_matched' of rte"),
        ({"batch_size": 0}, GPartError, "batch_size must be at least 1, got 0"),
        ({"max_length": 0}, GPartError, "max_length must be at least 1, got 0"),
        ({"num_workers": -1}, GPartError, "num_workers must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_named(data: Any, more: dict[str, Any], error: type[Exception], said: str) -> None:
    def whole() -> None:
        own = data(**more)
        own.setup("fit")
        own.setup("test")

    with pytest.raises(error, match=said):
        whole()


def test_a_model_that_is_not_there_is_named(data: Any, tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match="model 'nosuch/model' can't be loaded, as a folder or from the hub"):
        data(model="nosuch/model").setup("fit")
    with pytest.raises(GPartError, match=f"model '{tmp_path}' can't be loaded"):
        data(model=str(tmp_path)).setup("fit")
    with pytest.raises(GPartFileError, match="model 'nosuch/model' can't be loaded"):
        SequenceClassifier(model="nosuch/model").configure_model()


def test_a_loader_before_setup_is_named(data: Any) -> None:
    with pytest.raises(GPartError, match="no part 'train' among"):
        data().train_dataloader()


def test_worker_processes_give_the_same_batches(data: Any) -> None:
    def batches(workers: int) -> list[dict[str, Any]]:
        own = data(num_workers=workers)
        own.setup("fit")
        return list(own.val_dataloader())

    for one, two in zip(batches(0), batches(1), strict=True):
        assert one["idx"] == two["idx"]
        assert torch.equal(one["input_ids"], two["input_ids"])


def own_glue(folder: Path, glue_folder: Path, task: str, split: str, change: Any, kind: type = float) -> Path:
    """A copy of the folder with plain labels of one kind, and one split of a task changed."""
    import pandas as pd

    shutil.copytree(glue_folder, folder)
    for path in (folder / task).glob("*.parquet"):
        frame = pd.read_parquet(path)
        frame = frame.assign(label=[kind(label) for label in frame["label"]])
        (change(frame) if path.name.startswith(f"{split}-") else frame).to_parquet(path)
    return folder


def prepared(own: GLUEDataModule) -> None:
    own.prepare_data()
    own.setup("fit")


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("task", "column", "value", "said"),
    [
        ("rte", "label", 2, "row 3: column 'label' must be a class from 0 to 1, got 2"),
        ("rte", "label", -1, "row 3: column 'label' must be a class from 0 to 1, got -1"),
        ("stsb", "label", float("nan"), "row 3: column 'label' must be a finite number, got (nan|None)"),
        ("rte", "sentence2", None, "row 3: column 'sentence2' has no text, got None"),
        ("cola", "sentence", " ", "row 3: column 'sentence' has no text, got ' '"),
    ],
)
def test_a_bad_row_of_ones_own_is_named_before_the_first_step(
    split: str,
    task: str,
    column: str,
    value: Any,
    said: str,
    data: Any,
    glue_folder: Path,
    own_cache: Path,
    tmp_path: Path,
) -> None:
    def change(frame: Any) -> Any:
        values = frame[column].tolist()
        values[2] = value
        return frame.assign(**{column: values})

    folder = own_glue(tmp_path / "own", glue_folder, task, split, change, float if task == "stsb" else int)
    own = data(task, path=str(folder))
    with pytest.raises(GPartError, match=f"split '{split}' of {task}, {said}"):
        prepared(own)


def test_text_where_a_number_is_needed_is_named(data: Any, glue_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    folder = own_glue(
        tmp_path / "own",
        glue_folder,
        "stsb",
        "train",
        lambda frame: frame.assign(label=["n/a", *["1.0"] * (len(frame) - 1)]),
        str,
    )
    own = data("stsb", path=str(folder))
    with pytest.raises(
        GPartError, match="split 'train' of stsb, row 1: column 'label' must be a finite number, got 'n/a'"
    ):
        prepared(own)


def test_whole_numbers_are_numbers_of_a_regression(
    data: Any, glue_folder: Path, own_cache: Path, tmp_path: Path
) -> None:
    own = data("stsb", path=str(own_glue(tmp_path / "own", glue_folder, "stsb", "train", lambda frame: frame, int)))
    own.setup("fit")
    assert next(iter(own.train_dataloader()))["labels"].dtype == torch.float32
