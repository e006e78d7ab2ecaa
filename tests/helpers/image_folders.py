"""Fake pictures in each data set's real layout on disk, small and few; every class has 8 for training and 4 for the test.

A picture's pixels are noise from its name, so that no two are alike. Used through the fixture ``image_folders``.
"""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

TRAIN, TEST = 8, 4


def picture(name: str, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Noise from a name; ``size`` is width and height, in pixels."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(path.name).save(path)


def class_folders(folder: Path, classes: list[str], count: int, first: int = 1, suffix: str = "png") -> None:
    """``folder/CLASS/CLASS_N.png``."""
    for name in classes:
        for number in range(first, first + count):
            save(folder / name / f"{name}_{number}.{suffix}")


def oxford_pets(root: Path, monkeypatch: Any = None) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, first, count in (("trainval", 1, TRAIN), ("test", 100, TEST)):
        lines = []
        for label, (name, species) in enumerate((("Abyssinian", 1), ("american_bulldog", 2), ("Bombay", 1)), start=1):
            for number in range(first, first + count):
                save(folder / "images" / f"{name}_{number}.jpg")
                lines.append(f"{name}_{number} {label} {species} 1\n")
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))


def _cifar(root: Path, kind: Any, names: list[str], key: str, monkeypatch: Any) -> None:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def dump(file: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batches(files: list[str], total: int) -> list[list[str]]:
        labels = np.arange(total * len(names)) % len(names)
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        shares = np.array_split(np.arange(len(labels)), len(files))
        return [
            [file, dump(file, {"data": pixels[share], key: labels[share].tolist()})]
            for file, share in zip(files, shares, strict=True)
        ]

    monkeypatch.setattr(kind, "train_list", batches([file for file, _ in kind.train_list], TRAIN))
    monkeypatch.setattr(kind, "test_list", batches([file for file, _ in kind.test_list], TEST))
    meta = dict(kind.meta)
    meta["md5"] = dump(meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(kind, "meta", meta)


def cifar10(root: Path, monkeypatch: Any) -> None:
    from torchvision.datasets import CIFAR10

    _cifar(root, CIFAR10, ["airplane", "automobile", "bird"], "labels", monkeypatch)


def cifar100(root: Path, monkeypatch: Any) -> None:
    from torchvision.datasets import CIFAR100

    _cifar(root, CIFAR100, ["apple", "aquarium_fish", "baby"], "fine_labels", monkeypatch)


def dtd(root: Path, monkeypatch: Any = None) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split, first, count in (("train", 1, TRAIN // 2), ("val", 50, TRAIN // 2), ("test", 100, TEST)):
        names = [f"{name}/{name}_{n:04}.jpg" for name in ("banded", "dotted") for n in range(first, first + count)]
        for name in names:
            save(folder / "images" / name)
        (folder / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / "labels" / f"{split}2.txt").write_text("")


def fgvc_aircraft(root: Path, monkeypatch: Any = None) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    variants = ["707-320", "A340-200", "DC-9 30"]
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in variants))
    half = TRAIN // 2
    for split, first, count in (("train", 0, half), ("val", half, half), ("trainval", 0, TRAIN), ("test", 100, TEST)):
        lines = []
        for label, variant in enumerate(variants):
            for number in range(first, first + count):
                name = f"{1000 * label + number:07}"
                save(folder / "images" / f"{name}.jpg")
                lines.append(f"{name} {variant}\n")
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))


def _parquet(folder: Path, split: str, classes: list[str], count: int, shards: int = 1) -> None:
    """A split as the hub has it: the files' bytes and their names in a column."""
    from io import BytesIO

    names = [f"{split}_{number}.png" for number in range(count * len(classes))]
    cells = []
    for name in names:
        stream = BytesIO()
        picture(name).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": name})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes), "image_id": Value("string")})
    labels = [number % len(classes) for number in range(len(names))]
    table = Dataset.from_dict({"image": cells, "label": labels, "image_id": names}, features)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet"
        table.shard(shards, shard, contiguous=True).to_parquet(path)


def _card(folder: Path, splits: dict[str, int], classes: list[str]) -> None:
    names = "".join(f"          '{number}': {name}\n" for number, name in enumerate(classes))
    sizes = "".join(
        f"  - name: {split}\n    num_bytes: {1000 * count}\n    num_examples: {count}\n"
        for split, count in splits.items()
    )
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
        f"      class_label:\n        names:\n{names}  - name: image_id\n    dtype: string\n  splits:\n{sizes}"
        f"configs:\n- config_name: default\n  data_files:\n{files}---\n"
    )


def stanford_cars(folder: Path, monkeypatch: Any = None) -> None:
    """As tanganke/stanford_cars: two files a split, and damaged copies of the test set; these must not be read."""
    classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    _parquet(folder, "train", classes, TRAIN, shards=2)
    _parquet(folder, "test", classes, TEST, shards=2)
    (folder / "data" / "contrast-00000-of-00001.parquet").write_bytes(b"not to be read")
    _card(folder, {"train": 16, "test": 8, "contrast": 8}, classes)


def resisc45(folder: Path, monkeypatch: Any = None) -> None:
    """As timm/resisc45: a validation split too."""
    _three_splits(folder, ["airplane", "airport", "beach"])


def eurosat(folder: Path, monkeypatch: Any = None) -> None:
    """As blanchon/EuroSAT_RGB."""
    _three_splits(folder, ["Annual Crop", "Forest", "River"])


def _three_splits(folder: Path, classes: list[str]) -> None:
    for split, count in (("train", TRAIN - 2), ("validation", 2), ("test", TEST)):
        _parquet(folder, split, classes, count)
    _card(folder, {"train": 18, "validation": 6, "test": 12}, classes)


def imagefolder(folder: Path, monkeypatch: Any = None) -> None:
    class_folders(folder / "train", ["cat", "dog"], TRAIN)
    class_folders(folder / "test", ["cat", "dog"], TEST, first=100)


def hub(folder: Path, monkeypatch: Any = None) -> None:
    """One split only, as many data sets have it."""
    _parquet(folder, "train", ["cat", "dog"], TRAIN + TEST)


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "oxford-pets": oxford_pets,
    "stanford-cars": stanford_cars,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "dtd": dtd,
    "eurosat": eurosat,
    "fgvc-aircraft": fgvc_aircraft,
    "resisc45": resisc45,
    "imagefolder": imagefolder,
    "hub": hub,
}
BY_PATH = ("stanford-cars", "eurosat", "resisc45", "imagefolder", "hub")
"""Those that ``path`` leads to; the others lie below ``root``."""


def write(dataset: str, folder: Path, monkeypatch: Any) -> dict[str, str]:
    """Writes one data set into a folder and returns the DataModule's arguments for it."""
    WRITERS[dataset](folder, monkeypatch)
    return {"dataset": dataset, "path" if dataset in BY_PATH else "root": str(folder)}
