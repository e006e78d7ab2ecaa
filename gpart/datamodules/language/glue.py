"""GLUE's tasks, from the hub or a local folder, with a part of the training set held out.

Invariant: a training row is either trained on or held out to choose the checkpoint, by its id and the seed alone; the
validation set is only ever scored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, cast

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from gpart.datamodules.common.seeded import SeededDataModule
from gpart.datamodules.common.splits import check_held_out, chosen, hold_out
from gpart.datamodules.common.text import load_tokenizer, part_loader, tokenizer_fingerprint


@dataclass(frozen=True)
class GLUETask:
    """One task: its text columns, its classes in the order of their numbers (none: a regression), its splits."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    score_split: str = "validation"
    predict_split: str = "test"


_NLI = ("entailment", "not_entailment")

TASKS = {
    "cola": GLUETask(("sentence",), ("unacceptable", "acceptable")),
    "sst2": GLUETask(("sentence",), ("negative", "positive")),
    "mrpc": GLUETask(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": GLUETask(("sentence1", "sentence2"), ()),
    "qnli": GLUETask(("question", "sentence"), _NLI),
    "rte": GLUETask(("sentence1", "sentence2"), _NLI),
    "wnli": GLUETask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
    "qqp": GLUETask(("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": GLUETask(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "validation_matched", "test_matched"
    ),
}
"""The tasks by GLUE's names, as https://huggingface.co/datasets/nyu-mll/glue has them."""


class GLUEDataModule(SeededDataModule):
    """One GLUE task for any Hugging Face encoder.

    ``fit`` trains on the training set without the part held out; ``validate``, and the choice of the checkpoint, use
    that part; ``test`` scores on GLUE's validation set, whose labels are public; ``predict`` labels its test set. This
    is the paper's protocol (section 5.1). Batches hold what the tokenizer makes, ``labels``, and the rows' ids as a
    list under ``idx``. Texts are tokenised once; later runs find them in the cache of ``datasets``.

    Args:
        task: cola, sst2, mrpc, stsb, qnli, rte, mnli, qqp or wnli.
        model: whose tokenizer: a name on the hub, a folder, or ``packaged:NAME``.
        path: where the data is: a name on the hub, or a folder in its layout.
        batch_size: examples a step and device.
        max_length: tokens after which an example is cut, the longer text of a pair first.
        held_out: the part of the training set held out, stratified by class (by rounded score for a regression).
        train_size: train on this many of the others only, stratified; a smaller number is a part of a larger one.
        seed: what both choices come from; with the seed of ``seed_everything``, if there is one, also the order.
        num_workers: the loaders' processes.
        score_split: the split that ``test`` scores; default the task's, for mnli ``validation_matched``.
        predict_split: the split that ``predict`` labels; default the task's, for mnli ``test_matched``.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        task: str,
        model: str = "packaged:minilm",
        path: str = "nyu-mll/glue",
        batch_size: int = 32,
        max_length: int = 128,
        held_out: float = 0.1,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        score_split: str | None = None,
        predict_split: str | None = None,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task {task!r} is none of GLUE's: {', '.join(TASKS)}")
        check_held_out(held_out)
        # Plain types: a checkpoint holds these, and torch.load(weights_only=True) refuses a Path.
        model, path = str(model), str(path)
        self.save_hyperparameters()
        self.task = TASKS[task]
        self.parts: dict[str, Dataset] = {}
        self._pad: DataCollatorWithPadding | None = None

    def prepare_data(self) -> None:
        """Fetches model and data and tokenises every split, on one process only; setup finds all of it in the cache."""
        tokenizer = load_tokenizer(self.hparams["model"])
        for split in self._load().values():
            self._encode(split, tokenizer)

    def setup(self, stage: str) -> None:
        """Parts what the stage needs and is not there yet.

        Raises:
            FileNotFoundError: if there is no data at ``path``.
            ValueError: if a split that the stage needs is missing, its classes are not GLUE's, or ``train_size`` is
                more than there is.
        """
        needed = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": ("predict",),
        }[str(getattr(stage, "value", stage))]
        if all(part in self.parts for part in needed):
            return
        tokenizer = load_tokenizer(self.hparams["model"])
        self._pad = DataCollatorWithPadding(tokenizer)
        splits = self._load()
        if "val" in needed:
            data = self._encode(self._split(splits, "train"), tokenizer)
            rest, held = hold_out(self._strata(data), self.hparams["held_out"], self.hparams["seed"])
            size = self.hparams["train_size"]
            if size is not None:
                if not 1 <= size <= len(rest):
                    raise ValueError(f"train_size must be from 1 to the {len(rest)} rows not held out, got {size}")
                rest = chosen(self._strata(data), rest, size, self.hparams["seed"])
            self.parts["train"], self.parts["val"] = data.select(rest), data.select(held)
        for part, default in (("test", self.task.score_split), ("predict", self.task.predict_split)):
            if part in needed:
                name = self.hparams["score_split" if part == "test" else "predict_split"] or default
                self.parts[part] = self._encode(self._split(splits, name), tokenizer)

    def train_dataloader(self) -> StatefulDataLoader:
        """The training set without the part held out, in random order."""
        return self._loader("train")

    def val_dataloader(self) -> StatefulDataLoader:
        """The part held out, which chooses the checkpoint."""
        return self._loader("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """GLUE's validation set, which gives the score."""
        return self._loader("test")

    def predict_dataloader(self) -> StatefulDataLoader:
        """GLUE's test set; batches hold no labels."""
        return self._loader("predict")

    def _load(self) -> DatasetDict:
        path, task = self.hparams["path"], self.hparams["task"]
        try:
            data = load_dataset(path, task)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"no GLUE task {task!r} at {path!r}, on the hub or as a folder: {error}") from error
        return cast("DatasetDict", data)

    def _split(self, splits: DatasetDict, name: str) -> Dataset:
        if name not in splits:
            raise ValueError(
                f"{self.hparams['path']} has no split {name!r} of {self.hparams['task']}; it has {list(splits)}"
            )
        names = splits[name].features["label"]
        if isinstance(names, ClassLabel) and tuple(names.names) != self.task.labels:
            raise ValueError(
                f"{self.hparams['path']}: the classes of {self.hparams['task']} are {names.names}, GLUE's are"
                f" {list(self.task.labels)}"
            )
        return splits[name]

    def _encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        first, *second = self.task.columns
        length = self.hparams["max_length"]

        def encode(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            texts = [rows[first], *(rows[name] for name in second)]
            encoded = dict(tokenizer(*texts, truncation="longest_first", max_length=length))
            return {**encoded, "labels": rows["label"], "idx": rows.get("idx", numbers)}

        # A name of our own: a tokenizer changes its own state when it is first used, so that the name that map() would
        # make from it differs from run to run, and nothing would ever be found in the cache.
        key = f"{split._fingerprint} {tokenizer_fingerprint(tokenizer)} {self.task.columns} {length} 1"
        return split.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=split.column_names,
            new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
            desc=f"tokenise {self.hparams['task']}",
        )

    def _strata(self, data: Dataset) -> list[tuple[int, int]]:
        """Stratum and id of each row."""
        return [(round(label), idx) for label, idx in zip(data["labels"], data["idx"], strict=True)]

    def _loader(self, part: str) -> StatefulDataLoader:
        return part_loader(self, self.parts, part, self._pad, ("idx",))
