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
from datasets.exceptions import DatasetGenerationError

from gpart.assets.hub_reason import hub_reason
from gpart.errors import GPartError, GPartFileError


def load_splits(
    place: str,
    config: str | None = None,
    files: Mapping[str, Any] | None = None,
    *,
    damaged: str,
    missing: str,
    **settings: Any,
) -> DatasetDict:
    """Loads a data set's splits.

    Args:
        place: a name on the hub, or a folder with the same layout.
        config: the configuration, if there are several.
        files: the only files to read, by split; None reads all.
        damaged: what can't be read, for the message of that.
        missing: what there is not, for the message of that.
        settings: others of ``datasets.load_dataset``.

    Raises:
        GPartFileError: if there is no such data set, or the hub does not give it.
        GPartError: if a file of it can't be read.
    """
    folder = Path(place)
    cache = _cache_of(folder) if folder.is_dir() else None
    try:
        return cast("DatasetDict", load_dataset(place, config, data_files=files, cache_dir=cache, **settings))
    except (DatasetGenerationError, StopIteration) as error:
        raise unreadable(damaged, error) from error
    except (OSError, ValueError, RuntimeError) as error:  # the last: a data set that is a script
        raise GPartFileError(f"{missing}: {hub_reason(place, error)}") from error


def unreadable(what: str, error: Exception) -> GPartError:
    """The error for what ``datasets`` could not read, with the cause: its own words say little."""
    # An empty file gives a StopIteration, which says nothing.
    return GPartError(f"{what} can't be read: {error.__cause__ or str(error) or 'it is empty'}")


def _cache_of(folder: Path) -> str:
    """The cache of a folder as it is now: by its place, and by each file's name, size and time of its last change."""
    folder = folder.resolve()
    found = hashlib.sha256(str(folder).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        about = path.stat()
        found.update(f"\n{path.relative_to(folder)} {about.st_size} {about.st_mtime_ns}".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "gpart-folders" / found.hexdigest()[:32])
