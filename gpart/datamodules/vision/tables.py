"""Image data sets of the hub, or folders in its layout, through ``datasets``.

Invariant: pictures are kept as they are stored and decoded by the loader's workers; no code of a data set is run.
"""

from __future__ import annotations

from typing import Any, cast

from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets, load_dataset

from gpart.datamodules.common.splits import split_names
from gpart.datamodules.vision.pictures import Pictures
from gpart.datamodules.vision.reading import FromTable


def read_tables(
    place: str, part: str, files: dict[str, str] | None = None, label_column: str | None = None
) -> tuple[Pictures, bool]:
    """Reads the splits that a part is made of.

    Args:
        place: a name on the hub, or a folder in its layout.
        part: ``train`` or ``test``.
        files: the only files to read, by split.
        label_column: the column of classes, where there are several.

    Returns:
        The pictures, and whether the test part is still to be cut from them.

    Raises:
        FileNotFoundError: if there is no data set.
        ValueError: if it lacks a training split, an image column, a column of classes or a class of a row.
    """
    try:
        # Some releases of datasets miss the card's other splits where files are named (its issue 7282).
        data = load_dataset(place, data_files=files, verification_mode="no_checks" if files else None)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(f"no data set at {place!r}, on the hub or as a folder: {error}") from error
    splits = cast("DatasetDict", data)
    names = split_names(list(splits), place)
    image, label = _columns(splits["train"], place, label_column)
    classes = splits["train"].features[label].names
    tables, labels, rows = [], [], []
    for name in names[part] or names["train"] or []:
        own = splits[name]
        feature = own.features.get(label)
        if not isinstance(feature, ClassLabel) or feature.names != classes:
            raise ValueError(f"{place}: the classes of split {name!r} are {feature}, of 'train' {classes}")
        tables.append(own.cast_column(image, Image(decode=False)).select_columns([image]))
        labels += [_class(value, f"{place}: row {row} of split {name!r}") for row, value in enumerate(own[label][:])]
        rows += [f"{name}[{row}]" for row in range(len(own))]
    return Pictures(FromTable(concatenate_datasets(tables), image), labels, rows, tuple(classes), place), (
        names["test"] is None
    )


def _class(value: int | None, row: str) -> int:
    if value is None or value < 0:
        raise ValueError(f"{row} has no class, but {value}")
    return value


def _columns(data: Dataset, place: str, label_column: str | None) -> tuple[str, str]:
    kinds: dict[Any, list[str]] = {
        kind: [name for name, feature in data.features.items() if isinstance(feature, kind)]
        for kind in (Image, ClassLabel)
    }
    images, labels = kinds[Image], kinds[ClassLabel]
    if label_column is not None:
        if label_column not in labels:
            raise ValueError(f"{place}: label_column={label_column!r} is none of its columns of classes, {labels}")
        labels = [label_column]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{place} needs one image column and one column of classes; of images it has {images}, of classes {labels}"
            " (label_column chooses one)"
        )
    return images[0], labels[0]
