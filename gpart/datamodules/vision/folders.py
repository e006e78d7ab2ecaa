"""A user's own pictures, in one folder for each class, or in a folder with a table of file names and labels.

Invariant: the classes are those of the training split, numbered in the order of their names. Every picture belongs to
one of them. What can't be used is told in ``Pictures.wrong``, and is none of the rows.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn
from torchvision.datasets.folder import IMG_EXTENSIONS

from gpart.datamodules.common.splits import split_names, splits_of
from gpart.datamodules.vision.listed import read_list, table_in
from gpart.datamodules.vision.pictures import Pictures
from gpart.datamodules.vision.reading import FromFiles, path_name
from gpart.errors import GPartError, GPartFileError


def read_folders(path: Path, part: str) -> tuple[Pictures, bool]:
    """Lists the pictures ``path/train/CLASS/*`` and ``path/test/CLASS/*``, or ``path/CLASS/*``.

    In place of folders for the classes, a folder may have a ``metadata.csv`` or ``metadata.jsonl`` with the columns
    ``file_name`` and ``label``.

    Args:
        path: the folder.
        part: ``train``, which is followed by a validation split if there is one beside a test split, or ``test``.

    Returns:
        The pictures, and whether the folder has no test split, so that one is still to be cut from them.

    Raises:
        GPartFileError: if there is no such folder.
        GPartError: if it holds no class with pictures.
    """
    if not path.is_dir():
        raise GPartFileError(f"no folder of pictures at {path}")
    split = _splits_in(path)
    whole: dict[str, list[str]] = {"train": [""], "validation": [], "test": []}
    names = split_names(split, str(path)) if split else whole
    trained, wrong = _classes_of(path / names["train"][0], "train")
    classes = list(trained)
    if not classes:
        raise GPartError("; ".join(wrong) or f"{path / names['train'][0]} holds 0 folders of classes")
    paths, labels, validation = [], [], 0
    used = splits_of(names, part)
    for name in used:
        if name in names["train"]:
            found = trained
        else:
            found, own = _classes_of(path / name, part if name in names["test"] else "val")
            wrong = own if part == "test" else [*wrong, *own]
        for of, files in found.items():
            if of not in classes:
                where = "val" if name in names["validation"] else part
                wrong.append(f"{where}: the class {path / name / of} is none of the {len(classes)} training classes: {classes[:20]}")  # fmt: skip
                continue
            paths += files
            labels += [classes.index(of)] * len(files)
            validation += len(files) if name in names["validation"] else 0
    return _pictures(path, paths, labels, classes, validation, wrong), not names["test"]


def read_plain(path: Path) -> Pictures:
    """Lists all pictures below a folder, whose classes are not known.

    Raises:
        GPartFileError: if there is no such folder.
        GPartError: if it holds no picture.
    """
    if not path.is_dir():
        raise GPartFileError(f"no folder of pictures at {path}")
    files = _pictures_below(path)
    if not files:
        raise GPartError(f"the folder {path} holds 0 pictures ({', '.join(IMG_EXTENSIONS)})")
    return _pictures(path, files, [0] * len(files), [], 0, [])


def has_test_split(path: Path) -> bool:
    """Whether a folder has pictures that are there to be tested on."""
    names = _splits_in(path) if path.is_dir() else []
    return bool(names and split_names(names, str(path))["test"])


def _splits_in(path: Path) -> list[str]:
    """The folders of splits. A class may be called "train" too: a split's folder holds folders, a class's pictures."""
    inner = [folder for folder in _folders(path) if folder.name in ("train", "test", "val", "validation")]
    split = any(folder.name == "train" and (_folders(folder) or table_in(folder)) for folder in inner)
    return [folder.name for folder in inner] if split else []


def _classes_of(folder: Path, part: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each class in a folder, in the order of the classes' names, and what is wrong there."""
    table = table_in(folder)
    if table is not None:
        return read_list(table, part)
    found = {inner.name: _pictures_below(inner) for inner in _folders(folder)}
    empty = [name for name, files in found.items() if not files]
    wrong = [f"{part}: the class folder {folder / name} holds 0 pictures ({', '.join(IMG_EXTENSIONS)})" for name in empty]  # fmt: skip
    return {name: files for name, files in found.items() if files}, wrong


def _pictures(
    path: Path, files: list[Path], labels: list[int], classes: list[str], validation: int, wrong: list[str]
) -> Pictures:
    rows = [path_name(file, path) for file in files]
    read = FromFiles([str(file) for file in files])
    return Pictures(read, labels, rows, tuple(classes), str(path), validation, tuple(wrong))


def _folders(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _pictures_below(folder: Path) -> list[Path]:
    """The picture files in a folder and in its subfolders."""
    found = [Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names]
    files = sorted(file for file in found if not file.name.startswith("."))
    pictures = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
    if pictures and len(pictures) < len(files):
        others = [file for file in files if file not in set(pictures)]
        rank_zero_warn(f"{len(others)} files are left out, which are no pictures by their endings: {others[0]} ...")
    return pictures
