"""Image data sets on the hub, or in folders with the same layout, read with ``datasets``.

Invariant: pictures are kept as they are stored; the data loader's workers decode them. No code of a data set is run.
"""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Dataset, Image, concatenate_datasets

from gpart.datamodules.common.data_sets import load_splits
from gpart.datamodules.common.splits import split_names, splits_of
from gpart.datamodules.vision.pictures import Pictures
from gpart.datamodules.vision.reading import FromTable
from gpart.errors import GPartError


def read_tables(
    place: str, part: str, files: dict[str, str] | None = None, label_column: str | None = None
) -> tuple[Pictures, bool]:
    """Reads the pictures to train on, or those of the test split.

    Args:
        place: a name on the hub, or a folder with the same layout.
        part: ``train``, which is followed by a validation split if there is one beside a test split, or ``test``.
        files: the only files to read, by split; None reads all.
        label_column: the column of classes, if there are several.

    Returns:
        The pictures, and whether the data set has no test split, so that one is still to be cut from them.

    Raises:
        GPartFileError: if there is no such data set.
        GPartError: if it can't be read, lacks a training split, an image column or a column of classes, or a row has
            no class.
    """
    # verification_mode: where files are named, some releases of datasets report that the splits do not match those of the
    # data set's card (issue 7282 of datasets).
    mode, missing = "no_checks" if files else None, f"no data set at {place!r}, on the hub or as a folder"
    splits = load_splits(place, files=files, damaged=f"the data set {place!r}", missing=missing, verification_mode=mode)
    names = split_names(list(splits), place)
    image, label = _columns(splits["train"], place, label_column)
    classes = splits["train"].features[label].names
    tables, labels, rows = [], [], []
    used = splits_of(names, part)
    for name in used:
        own = splits[name]
        feature = own.features.get(label)
        if not isinstance(feature, ClassLabel) or feature.names != classes:
            raise GPartError(f"{place}: the classes of split {name!r} are {feature}, of 'train' {classes}")
        tables.append(own.cast_column(image, Image(decode=False)).select_columns([image]))
        labels += [_class(value, f"{place}: row {row} of split {name!r}") for row, value in enumerate(own[label][:])]
        rows += [f"{name}[{row}]" for row in range(len(own))]
    validation = sum(len(splits[name]) for name in used if name in names["validation"])
    pictures = Pictures(FromTable(concatenate_datasets(tables), image), labels, rows, tuple(classes), place, validation)
    return pictures, not names["test"]


def _class(value: int | None, row: str) -> int:
    if value is None or value < 0:
        raise GPartError(f"{row} has no class, but {value}")
    return value


def _columns(data: Dataset, place: str, label_column: str | None) -> tuple[str, str]:
    kinds: dict[Any, list[str]] = {
        kind: [name for name, feature in data.features.items() if isinstance(feature, kind)]
        for kind in (Image, ClassLabel)
    }
    images, labels = kinds[Image], kinds[ClassLabel]
    if label_column is not None:
        if label_column not in labels:
            raise GPartError(f"{place}: label_column={label_column!r} is none of its columns of classes, {labels}")
        labels = [label_column]
    if len(images) != 1 or len(labels) != 1:
        raise GPartError(
            f"{place} needs one image column and one column of classes; of images it has {images}, of classes {labels}"
            " (label_column chooses one)"
        )
    return images[0], labels[0]
