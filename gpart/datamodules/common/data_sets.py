"""Loads a data set from the hub or a folder with its layout.

Invariant: a folder's rows are those of its files as they are now. ``datasets`` itself caches a folder with a card
(``README.md`` with ``configs``) by its last name and the configuration alone (release 5.2): a file that was changed, and
another folder of the same name, would give the rows that were read first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import DatasetDict, load_dataset


def load_splits(
    place: str, config: str | None = None, files: Mapping[str, Any] | None = None, **settings: Any
) -> DatasetDict:
    """Loads a data set's splits.

    Args:
        place: a name on the hub, a folder with the same layout, or the name of a reader of ``datasets``, such as ``json``.
        config: the configuration, if there are several.
        files: the only files to read, by split; None reads all.
        settings: others of ``datasets.load_dataset``.

    Raises:
        DatasetGenerationError: if a file can't be read.
        OSError, ValueError: if there is no such data set.
    """
    folder = Path(place)
    cache = _cache_of(folder) if folder.is_dir() else None
    return cast("DatasetDict", load_dataset(place, config, data_files=files, cache_dir=cache, **settings))


def _cache_of(folder: Path) -> str:
    """The cache of a folder as it is now: by its place, and by each file's name, size and time of its last change."""
    folder = folder.resolve()
    found = hashlib.sha256(str(folder).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        about = path.stat()
        found.update(f"\n{path.relative_to(folder)} {about.st_size} {about.st_mtime_ns}".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "gpart-folders" / found.hexdigest()[:32])
