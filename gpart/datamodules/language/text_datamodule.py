"""People's own texts, with classes, several classes or numbers: from a file to batches.

Invariant: every part is read and checked before the first step. No text that is trained on is in another part. What
nobody said (columns, task, classes) is said in a line, and stands in the hyperparameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import DataCollatorWithPadding

from gpart.assets.fetching import resolve
from gpart.datamodules.common.own_rows import NO_TEST, BadRows, Policy, Row
from gpart.datamodules.common.seeded import SeededDataModule, check_loading
from gpart.datamodules.common.splits import check_held_out
from gpart.datamodules.common.text import load_tokenizer, mean_label, split_loader
from gpart.datamodules.language.text_columns import Columns
from gpart.datamodules.language.text_labels import PROBLEMS, Labels, Task, check_task
from gpart.datamodules.language.text_reading import Sources, read_labelled, read_unlabelled
from gpart.datamodules.language.text_rows import WithValues, encode
from gpart.errors import GPartError

DEFAULT_MODEL = "packaged:minilm"

_TASKS: dict[str, Task] = {problem: task for task, problem in PROBLEMS.items()}


class TextDataModule(SeededDataModule):
    """Your own texts: a file, a folder, a data set, a DataFrame.

    - ``fit`` trains on the rows that are in no other part; ``validate`` uses the rows held out, which select the checkpoint.
    - ``test`` scores the test part: ``test_path``, a part called so, or ``test_held_out``.
    - ``predict`` labels every row of ``path``, in order; it needs no labels.

    The parts are files of their own (``val_path``, ``test_path``, or a folder with train, val and test), the values of a
    column (``split``), or cut by a fraction, stratified and by seed; texts that are repeated stay together. A batch holds
    the tokenizer's output, ``labels``, under ``idx`` a list of the rows' places in their file, from 0, and in ``predict``
    under ``rows`` what each row has in the file.

    ``labels``, ``num_labels`` and ``problem_type`` tell the LightningModule what its head is, once setup has run.

    Args:
        path: a CSV, TSV, JSON-lines or Parquet file in UTF-8; a folder of such files; a data set's name on the hub, or a
            folder that ``datasets`` has saved; in Python also a DataFrame of pandas, a Dataset or a DatasetDict.
        text: the column with the texts, or two for pairs; the default is the only one with texts.
        label: the column with the labels; the default is the only one that looks like it.
        task: classification, multi-label or regression; the default is what the labels look like.
        separator: what stands between the labels of a text with several, such as ``"|"``; lists need none.
        model: the model whose tokenizer is used; the default is the LightningModule's.
        val_path: rows that select the checkpoint, in the same columns.
        test_path: rows that are scored.
        split: the column that says which part a row is in, by train, val and test in any case; the default is one called so,
            and ``""`` says that there is none.
        held_out: the fraction of the rows that selects the checkpoint; the default is a tenth, but enough to choose by.
        test_held_out: the fraction of the rows that is scored; the default is none.
        on_bad_row: ``error`` stops at the first bad row; ``skip`` leaves them out and counts them.
        subset: the configuration of a data set on the hub.
        batch_size: rows per step and device.
        max_length: the number of tokens at which a text is cut. Of a pair, the longer text is cut first.
        train_size: train on this many of the rows only, stratified.
        seed: the seed of the parts. Together with the seed of ``seed_everything``, if it is called, it also gives the
            order of the training rows.
        num_workers: the number of worker processes of each data loader.
        group_by_length: put texts of similar length into a batch of train and test, so that less of it is padding.
            Validation always does, and predict never.

    Raises:
        GPartError: if a setting is out of its range.
    """

    def __init__(
        self,
        path: str | Any = None,
        text: list[str] | str | None = None,
        label: str | None = None,
        task: Task | None = None,
        separator: str | None = None,
        model: str | None = None,
        val_path: str | Any = None,
        test_path: str | Any = None,
        split: str | None = None,
        held_out: float | None = None,
        test_held_out: float | None = None,
        on_bad_row: Policy = "error",
        subset: str | None = None,
        batch_size: int = 32,
        max_length: int = 128,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        group_by_length: bool = False,
    ) -> None:
        super().__init__()
        if path is None:
            raise GPartError("path is the file, folder or data set with your texts, as in --data.path tickets.csv")
        self._sources = (path, val_path, test_path)
        text = [text] if isinstance(text, str) else text
        if text is not None and len(text) not in (1, 2):
            raise GPartError(f"text is one column, or two for pairs, got {len(text)}: {text}")
        if separator == "":
            raise GPartError("separator stands between labels, such as '|', and is empty")
        check_task(task)
        if separator is not None and task not in (None, "multi-label"):
            raise GPartError(f"separator={separator!r} is for several labels a text, and task is {task!r}")
        for fraction in (held_out, test_held_out):
            if fraction is not None:
                check_held_out(fraction)
        check_loading(num_workers, batch_size=batch_size, max_length=max_length)
        BadRows(on_bad_row)  # which checks it
        # Plain types, since a checkpoint holds the hyperparameters and torch.load(weights_only=True) refuses others.
        path, val_path, test_path = (_name_of(source) for source in (path, val_path, test_path))
        self.save_hyperparameters()
        # From the command line it takes what was written there, not these names.
        self.save_hyperparameters({"path": path, "val_path": val_path, "test_path": test_path, "text": text})
        self.parts: dict[str, Any] = {}
        self._labels: Labels | None = None
        self._pad: DataCollatorWithPadding | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in the order of their numbers; none for a regression, or where the rows have no labels."""
        return self._labels.names if self._labels else ()

    @property
    def num_labels(self) -> int | None:
        """The number of classes, 1 for a regression; None where the rows have no labels."""
        return self._labels.num_labels if self._labels else None

    @property
    def problem_type(self) -> str | None:
        """What Transformers calls the task; None where the rows have no labels."""
        return PROBLEMS[self._labels.task] if self._labels else None

    def prepare_data(self) -> None:
        """Downloads the model, if it is a packaged one. Only one process does this."""
        resolve(self.base_model(DEFAULT_MODEL))

    def setup(self, stage: str) -> None:
        """Reads and checks all rows that the stage needs, unless that is done.

        Raises:
            GPartFileError: if there is no such file.
            GPartError: if a row is bad, or columns, task or parts can't be told.
        """
        stage = str(getattr(stage, "value", stage))
        if (stage if stage in ("test", "predict") else "val") in self.parts:
            return
        self._pad = DataCollatorWithPadding(load_tokenizer(self.base_model(DEFAULT_MODEL)))
        sources = Sources(*self._sources, self.hparams, BadRows(self.hparams["on_bad_row"]))
        (self._read_unlabelled(sources) if stage == "predict" else self._read(stage, sources))
        sources.bad.tell()

    def label_mean(self) -> float:
        """The mean of a regression's labels, over the training rows.

        Raises:
            GPartError: if setup("fit") has not run.
        """
        return mean_label(self.parts)

    def train_dataloader(self) -> StatefulDataLoader:
        """The rows that are in no other part, in random order."""
        return self._loader("train")

    def val_dataloader(self) -> StatefulDataLoader:
        """The rows held out, which select the checkpoint."""
        return self._loader("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """The rows that are scored."""
        self.check_test()
        return self._loader("test")

    def check_test(self) -> None:
        """Checks that the rows which were read have a test part.

        Raises:
            GPartError: if they have none.
        """
        if "test" not in self.parts and "val" in self.parts:
            raise GPartError(NO_TEST.format(self.hparams["path"]))

    def predict_dataloader(self) -> StatefulDataLoader:
        """Every row of ``path``. The batches hold no labels."""
        return self._loader("predict")

    def _read(self, stage: str, sources: Sources) -> None:
        found = read_labelled(sources, self._known_labels(), stage)
        self._labels, columns = found.labels, found.columns
        # New rows may have other columns: these settings are those of the labelled ones.
        told = {"text": list(columns.texts), "label": columns.label, "split": columns.split, "task": found.labels.task}
        self.save_hyperparameters(told)
        for part, some in found.parts.items():
            self.parts[part] = self._encode([one.row for one in some], columns, [one.label for one in some])
        rank_zero_info(f"{sources.name}: {found}")

    def _read_unlabelled(self, sources: Sources) -> None:
        columns, rows = read_unlabelled(sources)
        several = len({row.file for row in rows}) > 1
        names = list(dict.fromkeys(name for row in rows for name in row.values))  # JSON's objects may lack some
        values = [
            {**({"file": row.file} if several else {}), **{name: row.values.get(name) for name in names}}
            for row in rows
        ]
        self.parts["predict"] = WithValues(self._encode(rows, columns, None), values)

    def _known_labels(self) -> Labels | None:
        """What the LightningModule says of its labels, if it does."""
        module = None if self.trainer is None else self.trainer.lightning_module
        said: dict[str, Any] = {} if module is None else dict(module.hparams)
        names, problem = said.get("labels"), said.get("problem_type")
        if said.get("num_labels") == 1 or problem == PROBLEMS["regression"]:
            return Labels("regression", "")
        if not names:
            return None
        several = problem == PROBLEMS["multi-label"] or (problem is None and self.hparams["separator"] is not None)
        guess: Task = self.hparams["task"] or ("multi-label" if several else "classification")
        task: Task = guess if problem is None else _TASKS[problem]
        return Labels(task, "", tuple(map(str, names)))

    def _encode(self, rows: list[Row], columns: Columns, labels: list[Any] | None) -> Any:
        if self._pad is None:
            raise GPartError("setup() has not run")
        return encode(rows, columns.texts, self._pad.tokenizer, self.hparams["max_length"], labels)

    def _loader(self, part: str) -> StatefulDataLoader:
        lists = ("idx", "rows") if part == "predict" else ("idx",)
        return split_loader(self, self.parts, part, self._pad, lists, self.hparams["group_by_length"])


def _name_of(source: Any) -> str | None:
    """A source's name, for the hyperparameters."""
    if source is None or isinstance(source, (str, Path)):
        return None if source is None else str(source)
    return f"a {type(source).__name__}"
