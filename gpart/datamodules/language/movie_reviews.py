"""The quick start's data: movie-review sentences with human scores, as two classes.

Invariant: which split a sentence belongs to depends only on the file's content and the seed, never on a library's
random generator. The splits do not overlap, and texts that differ only in case or white space are in the same split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from gpart.assets.fetching import fetch, resolve
from gpart.datamodules.common.own_rows import key_of
from gpart.datamodules.common.seeded import SeededDataModule, check_loading
from gpart.datamodules.common.text import Example, load_tokenizer, split_loader
from gpart.errors import GPartError, GPartFileError

FILE = "movieReviewSnippets_GroundTruth.txt"

Row = tuple[str, int]
"""A text and its class: 0 is negative, 1 is positive."""


class MovieReviewDataModule(SeededDataModule):
    """10,568 sentences of film reviews. Each was scored by about twenty people; its class is the sign of the mean.

    Source: C.J. Hutto and E. Gilbert, "VADER", ICWSM 2014, shipped in the package vaderSentiment. Sentences scored 0
    have no sign and are left out (37 of 10,605). The splits train, val and test are 80, 10 and 10 % of each class.

    Args:
        model: the model whose tokenizer is used: a name on the hub, a folder, or ``packaged:NAME``.
        path: your own file in the same layout, instead of the packaged data. Each line holds an id, a score and a text,
            separated by tabs, in UTF-8.
        batch_size: sentences per step and device.
        max_length: the number of tokens at which a sentence is cut.
        train_size: train on this many sentences only, with the classes in proportion. A smaller number takes a subset
            of what a larger one takes.
        seed: the seed of the splits. Together with the seed of ``seed_everything``, if it is called, it also gives the
            order of the training rows.
        num_workers: the number of worker processes of each data loader.
        sentences: the sentences that ``predict`` labels; the default is the test split.
        group_by_length: put sentences of similar length into a batch of train and test, so that less of it is padding.
            Validation always does, and predict never.

    Raises:
        GPartError: if a setting is out of its range.
    """

    num_labels = 2
    labels = ("negative", "positive")
    id2label: ClassVar[dict[int, str]] = dict(enumerate(labels))

    def __init__(
        self,
        model: str = "packaged:minilm",
        path: str | None = None,
        batch_size: int = 32,
        max_length: int = 64,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        sentences: list[str] | None = None,
        group_by_length: bool = False,
    ) -> None:
        super().__init__()
        if sentences is not None and (isinstance(sentences, str) or not sentences):
            raise GPartError(f"sentences must be a list of at least one text, got {sentences!r}")
        check_loading(num_workers, batch_size=batch_size, max_length=max_length)
        # Plain types, since a checkpoint holds the hyperparameters and torch.load(weights_only=True) refuses a Path.
        model, path = str(model), None if path is None else str(path)
        sentences = None if sentences is None else list(sentences)
        self.save_hyperparameters()
        self.parts: dict[str, list[Example]] = {}
        self._pad: DataCollatorWithPadding | None = None

    def prepare_data(self) -> None:
        """Downloads the packaged data and model, if they are used. Only one process does this."""
        if self.hparams["path"] is None and not self._needs_no_file(
            self.trainer is not None and self.trainer.predicting
        ):
            fetch("movie-reviews")
        resolve(self.hparams["model"])

    def setup(self, stage: str) -> None:
        """Reads the data and makes and tokenises the splits that the stage needs, unless they are there already.

        Raises:
            GPartFileError: if there is no file at ``path``.
            GPartError: if a line is malformed, a class has too few sentences, or ``train_size`` is larger than the
                number of training sentences.
        """
        tokenizer = self._tokenizer()
        if self.hparams["sentences"] is not None and "predict" not in self.parts:
            self.parts["predict"] = self._encode(tokenizer, [(text, None) for text in self.hparams["sentences"]])
        if "train" in self.parts or self._needs_no_file(stage == "predict"):
            return
        path = self.hparams["path"]
        parts = split(read(Path(path) if path is not None else fetch("movie-reviews") / FILE), self.hparams["seed"])
        parts["train"] = first(parts["train"], self.hparams["train_size"])
        for name, rows in parts.items():
            self.parts[name] = self._encode(tokenizer, rows)
        self.parts.setdefault("predict", self.parts["test"])

    def train_dataloader(self) -> StatefulDataLoader:
        """The training split, in random order."""
        return self._loader("train")

    def val_dataloader(self) -> StatefulDataLoader:
        """The validation split, which selects the checkpoint."""
        return self._loader("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """The test split, which gives the score."""
        return self._loader("test")

    def predict_dataloader(self) -> StatefulDataLoader:
        """The given ``sentences``, or the test split. Batches hold the texts under ``text``, and no labels."""
        return self._loader("predict")

    def _needs_no_file(self, predicting: bool) -> bool:
        return predicting and self.hparams["sentences"] is not None

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self._pad is None:
            self._pad = DataCollatorWithPadding(load_tokenizer(self.hparams["model"]))
        return self._pad.tokenizer

    def _encode(self, tokenizer: PreTrainedTokenizerBase, rows: Iterable[tuple[str, int | None]]) -> list[Example]:
        texts, classes = zip(*rows, strict=True)
        tokens = tokenizer(list(texts), truncation=True, max_length=self.hparams["max_length"])
        return [
            {**{key: values[index] for key, values in tokens.items()}, "labels": label, "text": text}
            for index, (text, label) in enumerate(zip(texts, classes, strict=True))
        ]

    def _loader(self, part: str) -> StatefulDataLoader:
        lists = ("text",) if part == "predict" else ()
        return split_loader(self, self.parts, part, self._pad, lists, self.hparams["group_by_length"])


def read(path: Path) -> list[Row]:
    """Reads the texts and classes of a file with the layout of the packaged one. Sentences scored 0 are left out.

    Raises:
        GPartFileError: if there is no such file.
        GPartError: if a line is not an id, a score and a text in UTF-8, or no sentence is left.
    """
    if not path.is_file():
        raise GPartFileError(f"no file of scored sentences at {path}")
    rows, zeros = [], 0
    # Only a line feed ends a line. str.splitlines would also cut at other characters, which occur within a text.
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\n")
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            _, score, text = line.decode().rstrip("\r").split("\t")
            value = float(score)
        except ValueError:  # from decode, the unpacking or float
            raise GPartError(f"{path}, line {number}: expected id, score, text by tabs, got {line[:80]!r}") from None
        if not math.isfinite(value) or not text.strip():
            raise GPartError(f"{path}, line {number}: expected a finite score and a text, got {line[:80]!r}")
        if value == 0:
            zeros += 1
        else:
            rows.append((text.strip(), int(value > 0)))
    if not rows:
        raise GPartError(f"{path} holds 0 sentences with a score other than 0, and {zeros} with 0")
    return rows


def split(rows: list[Row], seed: int) -> dict[str, list[Row]]:
    """Splits the rows into train, val and test: 80, 10 and 10 % of each class.

    Within each class, the distinct texts are sorted by the SHA-256 of seed and text. The first tenth (rounded down) is
    val, the next tenth is test, and the rest is train. A text that is repeated counts for the class of its first line,
    and all its lines are in the same split.

    Raises:
        GPartError: if a class has fewer than 10 different texts.

    Example:
        >>> parts = split([(f"sentence {i}", i % 2) for i in range(100)], seed=0)
        >>> {name: (len(part), sum(label for _, label in part)) for name, part in parts.items()}
        {'train': (80, 40), 'val': (10, 5), 'test': (10, 5)}
    """
    same: dict[bytes, list[Row]] = {}
    for text, label in rows:
        digest = hashlib.sha256(f"{seed}:{key_of([text])}".encode()).digest()
        same.setdefault(digest, []).append((text, label))
    digests: dict[str, list[bytes]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(MovieReviewDataModule.labels):
        own = sorted(digest for digest, group in same.items() if group[0][1] == label)
        tenth = len(own) // 10
        if not tenth:
            raise GPartError(f"class {name!r} has {len(own)} different sentences, and splits of 80/10/10 % need 10")
        digests["val"] += own[:tenth]
        digests["test"] += own[tenth : 2 * tenth]
        digests["train"] += own[2 * tenth :]
    return {name: [row for digest in sorted(part) for row in same[digest]] for name, part in digests.items()}


def first(rows: list[Row], size: int | None) -> list[Row]:
    """Returns the first ``size`` rows, chosen so that the classes have the same proportion as in all rows.

    Raises:
        GPartError: if there are fewer rows, or ``size`` is below 1.
    """
    if size is None:
        return rows
    if not 1 <= size <= len(rows):
        raise GPartError(f"train_size must be from 1 to the {len(rows)} training sentences, got {size}")
    # Rounded half up, in integers, so that a larger size contains a smaller one. Python's round() goes to even.
    positive = (2 * size * sum(label for _, label in rows) + len(rows)) // (2 * len(rows))
    left = {1: positive, 0: size - positive}
    chosen = []
    for text, label in rows:
        if left[label] > 0:
            left[label] -= 1
            chosen.append((text, label))
    return chosen
