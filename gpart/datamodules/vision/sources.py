"""Loads pictures, their classes and their splits, from torchvision, the hub or folders.

Invariant: if a data set has a test split, that one is used. Else a test split is cut by the names of the pictures
alone; it is the same in every run, whatever the seed. Only DTD's parts are all drawn by the seed, as in the paper's
protocol. A folder that torchvision has downloaded is complete: it is filled elsewhere and then moved to its place.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock
from torchvision import datasets

from gpart.assets.fetching import PREFIX, resolve
from gpart.datamodules.common.splits import chosen, hold_out
from gpart.datamodules.vision.folders import has_test_split, read_folders, read_plain
from gpart.datamodules.vision.pictures import Pictures
from gpart.datamodules.vision.reading import FromArray, FromFiles, path_name
from gpart.datamodules.vision.tables import read_tables
from gpart.errors import GPartError, GPartFileError

TEST_FRACTION = 0.2
"""The fraction of the pictures that becomes the test split, if a data set has none."""
HELD_OUT = 0.1
"""The fraction of the training pictures that selects the checkpoint, if a data set has no validation split."""

Loader = Callable[[str, str, bool], Pictures]
"""Loads pictures, given a root folder, the split, and whether to download. The split is ``test`` or ``train``; the latter
is followed by the data set's own validation split, if it has one."""


@dataclass(frozen=True)
class Torchvision:
    """A data set that torchvision downloads and verifies."""

    folder: str
    """Its folder below the root folder."""
    load: Loader
    """Loads its pictures."""


@dataclass(frozen=True)
class Part:
    """The rows of a source that training, or the test, uses."""

    pictures: Pictures
    rows: list[int]
    """The rows to train on and to hold out from, or those of the test split."""
    validation: list[int]
    """Those of ``rows`` that select the checkpoint by the data set's own protocol; empty if it has none."""


def _files(paths: Sequence[str | Path], labels: list[int], classes: Sequence[str], base: str | Path) -> Pictures:
    files = [str(path) for path in paths]
    return Pictures(FromFiles(files), labels, [path_name(path, base) for path in files], tuple(classes), str(base))


# The functions below read attributes of torchvision's data sets, some of which are not public. torchvision has no other
# way to a picture's class than to read the picture.


def _pets(root: str, part: str, download: bool) -> Pictures:
    data = datasets.OxfordIIITPet(root, "trainval" if part == "train" else "test", download=download)
    return _files(data._images, data._labels, data.classes, data.root)


def _aircraft(root: str, part: str, download: bool) -> Pictures:
    names = ["train", "val"] if part == "train" else ["test"]
    parts = [datasets.FGVCAircraft(root, name, download=download) for name in names]
    validation = sum(len(data._labels) for data in parts[1:])
    return replace(_joined(parts), validation=validation)


def _textures(root: str, part: str, download: bool) -> Pictures:  # noqa: ARG001  # the protocol draws its own splits
    # Together, the splits of any partition are all pictures.
    return _joined([datasets.DTD(root, name, partition=1, download=download) for name in ("train", "val", "test")])


def _joined(parts: Sequence[Any]) -> Pictures:
    paths = [path for data in parts for path in data._image_files]
    return _files(paths, [label for data in parts for label in data._labels], parts[0].classes, parts[0].root)


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
    "fgvc-aircraft": Torchvision("fgvc-aircraft-2013b", _aircraft),
}
HUB = {"eurosat": "blanchon/EuroSAT_RGB", "stanford-cars": "tanganke/stanford_cars", "resisc45": "timm/resisc45"}
OWN = ("imagefolder", "hub")

# This repository also holds seven corrupted copies of the test set, which nobody should have to download.
_ONLY = {"stanford-cars": {"train": "data/train-*.parquet", "test": "data/test-*.parquet"}}
DRAWN = ("dtd",)
"""The data sets whose training, validation and test parts are all drawn by the seed."""


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
            self.load("train", seed=0)
        elif self.path is not None:
            resolve(self.path)

    def load(self, part: str, seed: int) -> Part:
        """Loads one part.

        Args:
            part: ``train``, which holds what selects the checkpoint too; ``test``; or ``predict``, which is the test
                split too, but all pictures of an ``imagefolder`` that has none.
            seed: the seed that draws the parts of DTD.

        Raises:
            GPartFileError: if the data is not there.
            GPartError: if it is damaged, or lacks what is needed.
        """
        if self.dataset == "imagefolder":
            folder = Path(resolve(str(self.path))).expanduser()
            if part == "predict" and not has_test_split(folder):
                plain = read_plain(folder)
                return Part(plain, list(range(len(plain.labels))), [])
        part = "test" if part == "predict" else part
        if self.dataset in TORCHVISION:
            pictures, whole = self._torchvision(part), self.dataset in DRAWN
        elif self.dataset == "imagefolder":
            pictures, whole = read_folders(folder, part)
        else:
            place = self.path or HUB[self.dataset]
            if place.startswith(PREFIX):
                place = resolve(place)
            pictures, whole = read_tables(place, part, _ONLY.get(self.dataset), self.label_column)
        count = len(pictures.labels)
        if not whole:
            return Part(pictures, list(range(count)), list(range(count - pictures.validation, count)))
        drawn = self.dataset in DRAWN
        train, test = hold_out(pictures.rows(), TEST_FRACTION, seed if drawn else 0)
        if part == "test":
            return Part(pictures, test, [])
        # Rounded up, as by the split function of the paper's code: 4,060 of DTD's pictures are trained on.
        size = math.ceil(HELD_OUT * len(train)) if drawn else 0
        return Part(pictures, train, chosen(pictures.rows(), train, size, seed))

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
