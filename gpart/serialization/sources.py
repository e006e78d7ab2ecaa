"""Reading an adapter from whatever holds one: a folder, a Lightning ``.ckpt``, or a name on the hub.

Invariant: nothing of a model is needed, and nothing in a file is run.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from torch import Tensor

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.about import About
from gpart.serialization.checkpoint_file import read_checkpoint
from gpart.serialization.folder import about_in, adapter_place, read_folder
from gpart.serialization.hub import download, is_hub_name
from gpart.serialization.manifest import Manifest

_ONE_OF_SEVERAL = re.compile(r"(.+\.ckpt):([\w-]+)")


def read_adapter(source: str | PathLike[str], name: str | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """The adapter in a folder, in a ``.ckpt``, or on the hub.

    Args:
        source: an adapter folder, or a ``.ckpt`` file; a path, or a URL that fsspec knows (``s3://...``); or a name on
            the hub, ``user/name`` or ``user/name@revision``, where nothing of this name is here. ``FILE.ckpt:NAME`` is
            one of several in a file.
        name: which one, of a ``.ckpt`` that holds several, where the source does not say.

    Returns:
        Its manifest; and theta, the saved modules' parameters and the changed buffers by their names in a folder.

    Raises:
        GPartFileError: if there is none, or a file is missing in it.
        GPartError: if a file was changed or truncated, or holds no adapter, or none of that name.
    """
    found = fetched(source)
    place, one = split_source(found)
    if not is_checkpoint(found):
        return read_folder(place)
    manifest, tensors = read_checkpoint(place, name if one is None else one)
    if one not in (None, manifest.name):
        raise GPartError(f"{place} holds no adapter {one!r}, but {manifest.name!r}")
    return manifest, tensors


def about_of(source: str | PathLike[str], name: str | None = None) -> About:
    """What an adapter's file, or the folder of what another method has trained, says of itself.

    Args:
        source: as for :func:`read_adapter`; or a folder that another method has written.
        name: which adapter, of a ``.ckpt`` that holds several, where the source does not say.

    Raises:
        GPartFileError: if there is none.
        GPartError: if a file was changed.
    """
    place = fetched(source)
    return read_adapter(place, name)[0].about if is_checkpoint(place) else about_in(place)


def split_source(source: str) -> tuple[str, str | None]:
    """The place of an adapter, and its name where the place is a checkpoint and the source says which of several.

    Example:
        >>> split_source("runs/last.ckpt:math"), split_source("runs/math")
        (('runs/last.ckpt', 'math'), ('runs/math', None))
    """
    found = _ONE_OF_SEVERAL.fullmatch(source)
    return (found[1], found[2]) if found and not _is_folder(source) else (source, None)


def is_checkpoint(source: str) -> bool:
    """Whether a source is a ``.ckpt``, by its name; a folder that holds an adapter may have such a name, too."""
    return split_source(source)[0].endswith(".ckpt") and not _is_folder(source)


def _is_folder(source: str) -> bool:
    """Whether an adapter's folder is at a place."""
    try:
        adapter_place(source)
    except GPartFileError:
        return False
    return True


def fetched(source: str | PathLike[str]) -> str:
    """A source that is on this machine, or a URL: an adapter on the hub is downloaded into the hub's cache.

    Example:
        >>> fetched("s3://bucket/adapter"), fetched("/runs/adapter"), fetched("run.ckpt")
        ('s3://bucket/adapter', '/runs/adapter', 'run.ckpt')
    """
    place = str(source)
    return str(download(place)) if is_hub_name(place) and not Path(place).exists() else place
