"""GLUE's tasks, from the hub or a local folder, with a fraction of the training set held out.

Invariant: a training row is either trained on or held out to select the checkpoint. Only its id and the seed decide
which. GLUE's validation set is used for nothing but the final score.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import ClassLabel, Dataset, DatasetDict
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from gpart.datamodules.common.data_sets import load_splits
from gpart.datamodules.common.seeded import SeededDataModule, check_loading
from gpart.datamodules.common.splits import check_held_out, chosen, hold_out
from gpart.datamodules.common.text import load_tokenizer, mean_label, split_loader, tokenizer_fingerprint
from gpart.datamodules.language.glue_rows import as_number, check_labels, check_texts
from gpart.errors import GPartError


@dataclass(frozen=True)
class GLUETask:
    """What one of GLUE's tasks consists of."""

    columns: tuple[str, ...]
    """The text columns: one, or two for a pair of texts."""
    labels: tuple[str, ...]
    """The classes' names, in the order of their numbers. It is empty for a regression."""
    score_split: str = "validation"
    """The split that gives the score."""
    predict_split: str = "test"
    """The split without public labels."""


TaskName = Literal["cola", "sst2", "mrpc", "stsb", "qnli", "rte", "wnli", "qqp", "mnli"]

_NLI = ("entailment", "not_entailment")

TASKS: dict[TaskName, GLUETask] = {
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
"""The tasks by their names in https://huggingface.co/datasets/nyu-mll/glue."""


class GLUEDataModule(SeededDataModule):
    """One GLUE task for any Hugging Face encoder.

    The splits are those of the paper's protocol (section 5.1):

    - ``fit`` trains on GLUE's training set, without the rows that are held out.
    - ``validate`` uses the rows held out. They also select the checkpoint.
    - ``test`` scores on GLUE's validation set, whose labels are public.
    - ``predict`` labels GLUE's test set.

    A batch holds the tokenizer's output, ``labels``, and under ``idx`` a list of the rows' ids. Texts are tokenised
    once; later runs find them in the cache of ``datasets``.

    Args:
        task: the task's name.
        model: the model whose tokenizer is used: a name on the hub, a folder, or ``packaged:NAME``.
        path: the data: a name on the hub, or a folder with the same layout.
        batch_size: examples per step and device.
        max_length: the number of tokens at which an example is cut. Of a pair, the longer text is cut first.
        held_out: the fraction of the training set that is held out, stratified by class (by the rounded score for a
            regression).
        train_size: train on this many of the remaining rows only, stratified. A smaller number takes a subset of what a
            larger one takes.
        seed: the seed of both choices. Together with the seed of ``seed_everything``, if it is called, it also gives
            the order of the training rows.
        num_workers: the number of worker processes of each data loader.
        group_by_length: put examples of similar length into a batch of train and test, so that less of it is padding.
            Validation always does, and predict never.
        score_split: the split that ``test`` scores; the default is the task's (for mnli ``validation_matched``).
        predict_split: the split that ``predict`` labels; the default is the task's (for mnli ``test_matched``).

    Raises:
        GPartError: if a setting is out of its range.
    """

    def __init__(
        self,
        task: TaskName,
        model: str = "packaged:minilm",
        path: str = "nyu-mll/glue",
        batch_size: int = 32,
        max_length: int = 128,
        held_out: float = 0.1,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        group_by_length: bool = False,
        score_split: str | None = None,
        predict_split: str | None = None,
    ) -> None:
        super().__init__()
        if task not in get_args(TaskName):
            raise GPartError(f"task {task!r} is none of GLUE's: {', '.join(get_args(TaskName))}")
        check_held_out(held_out)
        check_loading(num_workers, batch_size=batch_size, max_length=max_length)
        # Plain types, since a checkpoint holds the hyperparameters and torch.load(weights_only=True) refuses a Path.
        model, path = str(model), str(path)
        self.save_hyperparameters()
        self.task = TASKS[task]
        self.parts: dict[str, Dataset] = {}
        self._pad: DataCollatorWithPadding | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in the order of their numbers; none for a regression."""
        return self.task.labels

    @property
    def num_labels(self) -> int:
        """The number of classes, or 1 for a regression."""
        return len(self.labels) or 1

    def prepare_data(self) -> None:
        """Downloads the model and the data and tokenises every split. Only one process does this.

        The other processes then find the result in the cache.
        """
        tokenizer = load_tokenizer(self.hparams["model"])
        splits = self._load()
        for name in splits:
            self._check_rows(splits, name, labelled=False)  # the tokenizer's own error would name no row
            self._encode(splits[name], tokenizer)

    def setup(self, stage: str) -> None:
        """Makes the splits that the stage needs, unless they are there already.

        Raises:
            GPartFileError: if there is no data at ``path``.
            GPartError: if a split that the stage needs is missing, its columns or classes are not GLUE's, a row of it, or
                of the split that gives the score, has no text or no label of GLUE's, or ``train_size`` is larger than
                the number of rows.
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
        scored = self.hparams["score_split"] or self.task.score_split
        if "val" in needed:
            self._check_rows(splits, "train")
            if scored in splits:  # before the first step, not after the last
                self._check_rows(splits, scored)
            data = self._encode(self._split(splits, "train"), tokenizer)
            rows = self._strata(data)
            rest, held = hold_out(rows, self.hparams["held_out"], self.hparams["seed"])
            size = self.hparams["train_size"]
            if size is not None:
                if not 1 <= size <= len(rest):
                    raise GPartError(f"train_size must be from 1 to the {len(rest)} rows not held out, got {size}")
                rest = chosen(rows, rest, size, self.hparams["seed"])
            self.parts["train"], self.parts["val"] = data.select(rest), data.select(held)
        for part, default in (("test", self.task.score_split), ("predict", self.task.predict_split)):
            if part in needed:
                name = self.hparams["score_split" if part == "test" else "predict_split"] or default
                self._check_rows(splits, name, labelled=part == "test")
                self.parts[part] = self._encode(self._split(splits, name), tokenizer)

    def label_mean(self) -> float:
        """The mean of the labels of the training rows, without those held out.

        Raises:
            GPartError: if setup("fit") has not run.
        """
        return mean_label(self.parts)

    def train_dataloader(self) -> StatefulDataLoader:
        """The training set without the rows held out, in random order."""
        return self._loader("train")

    def val_dataloader(self) -> StatefulDataLoader:
        """The rows held out, which select the checkpoint."""
        return self._loader("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """GLUE's validation set, which gives the score."""
        return self._loader("test")

    def predict_dataloader(self) -> StatefulDataLoader:
        """GLUE's test set. Its batches hold no labels."""
        return self._loader("predict")

    def _load(self) -> DatasetDict:
        path, task = self.hparams["path"], self.hparams["task"]
        what = f"GLUE task {task!r} at {path!r}"
        return load_splits(path, task, damaged=what, missing=f"no {what}, on the hub or as a folder")

    def _split(self, splits: DatasetDict, name: str) -> Dataset:
        if name not in splits:
            raise GPartError(
                f"{self.hparams['path']} has no split {name!r} of {self.hparams['task']}; it has {list(splits)}"
            )
        columns, needed = splits[name].column_names, [*self.task.columns, "label"]
        if not set(needed) <= set(columns):
            raise GPartError(
                f"{self.hparams['path']}: split {name!r} of {self.hparams['task']} has the columns {columns}; expected"
                f" {needed}"
            )
        names = splits[name].features["label"]
        if isinstance(names, ClassLabel) and tuple(names.names) != self.task.labels:
            raise GPartError(
                f"{self.hparams['path']}: the classes of {self.hparams['task']} are {names.names}, GLUE's are"
                f" {list(self.task.labels)}"
            )
        return splits[name]

    def _check_rows(self, splits: DatasetDict, name: str, labelled: bool = True) -> None:
        split = self._split(splits, name)
        place = f"{self.hparams['path']}, split {name!r} of {self.hparams['task']}"
        check_texts({column: split[column][:] for column in self.task.columns}, place)
        if labelled:
            check_labels(split["label"][:], len(self.task.labels), place)

    def _encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        first, *second = self.task.columns
        length = self.hparams["max_length"]

        def encode(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            texts = [rows[first], *(rows[name] for name in second)]
            encoded = dict(tokenizer(*texts, truncation="longest_first", max_length=length))
            # In a file of one's own, a regression's numbers may all be whole, or texts where nothing is trained on them.
            labels = rows["label"] if self.labels else [as_number(label) for label in rows["label"]]
            return {**encoded, "labels": labels, "idx": rows.get("idx", numbers)}

        # We name the result ourselves. A tokenizer changes its own state when it is first used. The name that map()
        # derives from that state would differ from run to run, and nothing would ever be found in the cache.
        key = f"{split._fingerprint} {tokenizer_fingerprint(tokenizer)} {self.task.columns} {length} 2"
        return split.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=split.column_names,
            new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
            desc=f"tokenise {self.hparams['task']}",
        )

    def _strata(self, data: Dataset) -> list[tuple[int, int]]:
        """The stratum and the id of each row."""
        # A column that is iterated is read row by row, 25 us each; a slice of it is read at once.
        return [(round(label), idx) for label, idx in zip(data["labels"][:], data["idx"][:], strict=True)]

    def _loader(self, part: str) -> StatefulDataLoader:
        return split_loader(self, self.parts, part, self._pad, ("idx",), self.hparams["group_by_length"])
