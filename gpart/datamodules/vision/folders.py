"""A user's own pictures, in one folder for each class.

Invariant: the classes are the folders of the training split, numbered in the order of their names. Every picture
belongs to one of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn
from torchvision.datasets.folder import IMG_EXTENSIONS

from gpart.datamodules.common.splits import split_names, splits_of
from gpart.datamodules.vision.pictures import Pictures
from gpart.datamodules.vision.reading import FromFiles, path_name
from gpart.errors import GPartError, GPartFileError


def read_folders(path: Path, part: str) -> tuple[Pictures, bool]:
    """Lists the pictures ``path/train/CLASS/*`` and ``path/test/CLASS/*``, or ``path/CLASS/*``.

    Args:
        path: the folder.
        part: ``train``, which is followed by a validation split if there is one beside a test split, or ``test``.

    Returns:
        The pictures, and whether the folder has no test split, so that one is still to be cut from them.

    Raises:
        GPartFileError: if there is no such folder.
        GPartError: if it holds no class folder, a class folder holds no picture, or a class has no training folder.
    """
    if not path.is_dir():
        raise GPartFileError(f"no folder of pictures at {path}")
    # A class may be called "train" too. The folder of a split holds folders, that of a class holds pictures.
    inner = [folder for folder in _folders(path) if folder.name in ("train", "test", "val", "validation")]
    split = any(folder.name == "train" and _folders(folder) for folder in inner)
    whole: dict[str, list[str]] = {"train": [""], "validation": [], "test": []}
    names = split_names([folder.name for folder in inner], str(path)) if split else whole
    classes = [folder.name for folder in _folders(path / names["train"][0])]
    if not classes:
        raise GPartError(f"{path / 'train' if split else path} holds 0 folders of classes")
    paths, labels, validation = [], [], 0
    used = splits_of(names, part)
    for name in used:
        for folder in _folders(path / name):
            if folder.name not in classes:
                raise GPartError(f"the class {folder} is none of the {len(classes)} training classes: {classes[:20]}")
            own = _pictures(folder)
            paths += own
            labels += [classes.index(folder.name)] * len(own)
            validation += len(own) if name in names["validation"] else 0
    files = [str(file) for file in paths]
    rows = [path_name(file, path) for file in files]
    return Pictures(FromFiles(files), labels, rows, tuple(classes), str(path), validation), not names["test"]


def _folders(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """Returns the picture files of a class, including those in its subfolders."""
    found = [Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names]
    files = sorted(file for file in found if not file.name.startswith("."))
    pictures = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
    if not pictures:
        raise GPartError(f"the class folder {folder} holds 0 pictures ({', '.join(IMG_EXTENSIONS)})")
    if len(pictures) < len(files):
        others = [file for file in files if file not in set(pictures)]
        rank_zero_warn(f"{len(others)} files are left out, which are no pictures by their endings: {others[0]} ...")
    return pictures
