"""Reading an adapter from whatever holds one: a folder, a Lightning ``.ckpt``, or a name on the hub.

Invariant: nothing of a model is needed, and nothing in a file is run.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from torch import Tensor

from gpart.errors import GPartError
from gpart.serialization.about import About
from gpart.serialization.checkpoint_file import read_checkpoint
from gpart.serialization.folder import about_in, holds_adapter, read_folder
from gpart.serialization.hub import download, is_hub_name
from gpart.serialization.manifest import Manifest

_CHECKPOINT = re.compile(r"(.+\.ckpt)(?::([\w-]+))?")


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
    place = fetched(source)
    if (file := checkpoint_of(place)) is None:
        return read_folder(place)
    place, one = file
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
    return about_in(place) if checkpoint_of(place) is None else read_adapter(place, name)[0].about


def checkpoint_of(source: str) -> tuple[str, str | None] | None:
    """The ``.ckpt`` that a source is by its name, and which of several adapters in it, if the source says so.

    None where it is a folder; one that holds an adapter may have such a name, too.

    Example:
        >>> checkpoint_of("runs/last.ckpt:math"), checkpoint_of("runs/last.ckpt"), checkpoint_of("runs/math")
        (('runs/last.ckpt', 'math'), ('runs/last.ckpt', None), None)
    """
    found = _CHECKPOINT.fullmatch(source)
    return None if found is None or holds_adapter(source) else (found[1], found[2])


def fetched(source: str | PathLike[str]) -> str:
    """A source that is on this machine, or a URL: an adapter on the hub is downloaded into the hub's cache.

    Example:
        >>> fetched("s3://bucket/adapter"), fetched("/runs/adapter"), fetched("run.ckpt")
        ('s3://bucket/adapter', '/runs/adapter', 'run.ckpt')
    """
    place = str(source)
    return str(download(place)) if is_hub_name(place) and not Path(place).exists() else place
