"""Adapters' names in a store, and where they lie: one folder each, below one folder.

Invariant: what :func:`adapter_files` gives lies inside the store's folder, whatever the name and whatever symbolic links
there are. A name is never joined to a path before it was checked.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpart.errors import GPartError, GPartFileError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""As in :mod:`gpart.serialization.folder`, which needs torch; what lists a folder does not."""

LONGEST = 64
"""Characters in a name."""

_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")


def is_name(name: object) -> bool:
    r"""Whether something can be the name of a stored adapter.

    >>> is_name("user-17.v2"), is_name(".."), is_name("a/b"), is_name(""), is_name("a" * 65), is_name("a\n"), is_name(3)
    (True, False, False, False, False, False, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_stored_name(name: object) -> str:
    """A stored adapter's name, if it can be one.

    Raises:
        GPartError: if it cannot.
    """
    if not isinstance(name, str) or not is_name(name):
        shown = repr(name)
        raise GPartError(
            f"an adapter's name has 1 to {LONGEST} letters, digits, '.', '_' and '-', and no '.' in front; got"
            f" {shown if len(shown) <= 80 else shown[:76] + ' ...'}"
        )
    return name


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """A store's folder.

    Raises:
        GPartFileError: if it is not there.
    """
    if not Path(folder).is_dir():
        raise GPartFileError(f"there is no folder {folder} to serve adapters from")
    return Path(folder)


def listed(root: Path) -> list[str]:
    """The names of the adapters below a folder, sorted: folders with an adapter's config, also of broken ones."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if is_name(entry.name)]
    return sorted(name for name in names if _inside(root, root / name / CONFIG))


def adapter_files(root: Path, name: str) -> tuple[Path, Path]:
    """The config and the tensor file of a stored adapter.

    Args:
        root: the store's folder.
        name: a checked one.

    Raises:
        GPartFileError: if there is no such adapter.
        GPartError: if its tensor file is missing, or a symbolic link leads out of the store's folder.
    """
    folder = root / name
    if not folder.is_dir():
        raise GPartFileError(f"there is no adapter {name!r}")
    files = folder / CONFIG, folder / TENSORS
    if not files[0].exists():
        raise GPartFileError(f"there is no adapter {name!r}: its folder has no file {CONFIG}")
    for file in files:
        if not file.exists():
            raise GPartError(f"there is no file {file.name}")
        if not _inside(root, file):
            raise GPartError(f"{file.name} is a link that leaves the store's folder, and is not read")
    return files


def _inside(root: Path, file: Path) -> bool:
    """Whether a file is there, and below a folder when every link is followed."""
    try:
        return file.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # not there, or a circle of links
        return False
