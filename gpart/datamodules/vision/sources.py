"""Loads pictures, their classes and their splits, from torchvision, the hub or folders.

Invariant: if a data set has a test split, that one is used. Else a test split is cut by the names of the pictures
alone; it is the same in every run, whatever the seed. A folder that torchvision has downloaded is complete: it is
filled elsewhere and then moved to its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock
from torchvision import datasets

from gpart.assets.fetching import PREFIX, resolve
from gpart.datamodules.common.splits import hold_out
from gpart.datamodules.vision.folders import read_folders
from gpart.datamodules.vision.pictures import Pictures
from gpart.datamodules.vision.reading import FromArray, FromFiles, path_name
from gpart.datamodules.vision.tables import read_tables
from gpart.errors import GPartError, GPartFileError

TEST_FRACTION = 0.2
"""The fraction of the pictures that becomes the test split, if a data set has none."""

Loader = Callable[[str, str, bool], Pictures]
"""Loads pictures, given a root folder, the split (``train`` or ``test``), and whether to download."""


@dataclass(frozen=True)
class Torchvision:
    """A data set that torchvision downloads and verifies."""

    folder: str
    """Its folder below the root folder."""
    load: Loader
    """Loads its pictures."""


def _files(data: Any, paths: Sequence[str | Path], labels: list[int], base: str | Path) -> Pictures:
    files = [str(path) for path in paths]
    return Pictures(FromFiles(files), labels, [path_name(path, base) for path in files], tuple(data.classes), str(base))


# The functions below read attributes of torchvision's data sets, some of which are not public. torchvision has no other
# way to a picture's class than to read the picture.


def _pets(root: str, part: str, download: bool) -> Pictures:
    data = datasets.OxfordIIITPet(root, "trainval" if part == "train" else "test", download=download)
    return _files(data, data._images, data._labels, data.root)


def _aircraft(root: str, part: str, download: bool) -> Pictures:
    data = datasets.FGVCAircraft(root, "trainval" if part == "train" else "test", download=download)
    return _files(data, data._image_files, data._labels, data.root)


def _textures(root: str, part: str, download: bool) -> Pictures:
    names = ["train", "val"] if part == "train" else ["test"]
    parts = [datasets.DTD(root, name, partition=1, download=download) for name in names]
    paths = [path for data in parts for path in data._image_files]
    return _files(parts[0], paths, [label for data in parts for label in data._labels], parts[0].root)


def _eurosat(root: str, part: str, download: bool) -> Pictures:  # noqa: ARG001  # it has no splits
    data = datasets.EuroSAT(root, download=download)
    paths, labels = zip(*data.samples, strict=True)
    return _files(data, paths, list(labels), data._data_folder)


def _cifar(kind: Any) -> Loader:
    def load(root: str, part: str, download: bool) -> Pictures:
        data = kind(root, train=part == "train", download=download)
        names = [f"{part}[{row}]" for row in range(len(data.targets))]
        return Pictures(FromArray(data.data), data.targets, names, tuple(data.classes), f"{root}/{kind.base_folder}")

    return load


DatasetName = Literal[
    "oxford-pets",
    "cifar10",
    "cifar100",
    "dtd",
    "eurosat",
    "fgvc-aircraft",
    "stanford-cars",
    "resisc45",
    "imagefolder",
    "hub",
]

TORCHVISION = {
    "oxford-pets": Torchvision("oxford-iiit-pet", _pets),
    "cifar10": Torchvision("cifar-10-batches-py", _cifar(datasets.CIFAR10)),
    "cifar100": Torchvision("cifar-100-python", _cifar(datasets.CIFAR100)),
    "dtd": Torchvision("dtd", _textures),
    "eurosat": Torchvision("eurosat", _eurosat),
    "fgvc-aircraft": Torchvision("fgvc-aircraft-2013b", _aircraft),
}
HUB = {"stanford-cars": "tanganke/stanford_cars", "resisc45": "timm/resisc45"}
OWN = ("imagefolder", "hub")

# This repository also holds seven corrupted copies of the test set, which nobody should have to download.
_ONLY = {"stanford-cars": {"train": "data/train-*.parquet", "test": "data/test-*.parquet"}}
# torchvision's data sets without a test split.
_WHOLE = ("eurosat",)


@dataclass(frozen=True)
class Source:
    """A data set and its location."""

    dataset: DatasetName
    """The data set's name."""
    root: str
    """The folder for torchvision's downloads."""
    path: str | None = None
    """The location of a user's own data, or of a copy of one of the hub's data sets."""
    label_column: str | None = None
    """The column of classes, in a table with several such columns."""

    def __post_init__(self) -> None:
        if self.dataset not in get_args(DatasetName):
            raise GPartError(f"dataset {self.dataset!r} is none of {', '.join(get_args(DatasetName))}")
        if self.dataset in OWN and self.path is None:
            raise GPartError(f"dataset {self.dataset!r} needs a path, got path=None")
        if self.dataset in TORCHVISION and self.path is not None:
            raise GPartError(
                f"dataset {self.dataset!r} lies in root={self.root!r}, where torchvision puts it; got"
                f" path={self.path!r}"
            )

    def prepare(self) -> None:
        """Downloads the data set if it is not there yet.

        Raises:
            GPartFileError: if it is not there and can't be downloaded.
        """
        if self.dataset in TORCHVISION:
            _download(self.dataset, Path(self.root).expanduser())
        elif self.dataset != "imagefolder":
            self.load("train")
        elif self.path is not None:
            resolve(self.path)

    def load(self, part: str) -> tuple[Pictures, list[int]]:
        """Loads one split.

        Args:
            part: the split, ``train`` or ``test``.

        Returns:
            Pictures, and the numbers of those rows that belong to the split.

        Raises:
            GPartFileError: if the data is not there.
            GPartError: if it is damaged, or lacks what is needed.
        """
        if self.dataset in TORCHVISION:
            pictures, whole = self._torchvision(part), self.dataset in _WHOLE
        elif self.dataset == "imagefolder":
            pictures, whole = read_folders(Path(resolve(str(self.path))).expanduser(), part)
        else:
            place = self.path or HUB[self.dataset]
            if place.startswith(PREFIX):
                place = resolve(place)
            pictures, whole = read_tables(place, part, _ONLY.get(self.dataset), self.label_column)
        if not whole:
            return pictures, list(range(len(pictures.labels)))
        train, test = hold_out(pictures.rows(), TEST_FRACTION, seed=0)
        return pictures, train if part == "train" else test

    def _torchvision(self, part: str) -> Pictures:
        entry, root = TORCHVISION[self.dataset], Path(self.root).expanduser()
        folder = root / entry.folder
        if not folder.is_dir():
            raise GPartFileError(f"{self.dataset} is not at {folder}; prepare_data() downloads it")
        try:
            return entry.load(str(root), part, False)
        except (RuntimeError, OSError) as error:
            raise GPartError(
                f"{self.dataset} at {folder} is damaged or incomplete; remove that folder to download it again: {error}"
            ) from error


def _download(name: str, root: Path) -> None:
    entry = TORCHVISION[name]
    folder = root / entry.folder
    if folder.is_dir():
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{entry.folder}.lock"):
        if folder.is_dir():  # another process was faster
            return
        # We hold the lock, so that no other process is at work: a working folder here was left by a killed one.
        work = root / f".{entry.folder}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        try:
            entry.load(str(work), "train", True)
            os.replace(work / entry.folder, folder)
        except (RuntimeError, OSError) as error:
            raise GPartFileError(f"{name} is not at {folder} and could not be downloaded: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
