"""Reading an adapter from whatever holds one: a folder, a Lightning ``.ckpt``, or a name on the hub.

Invariant: nothing of a model is needed, and nothing in a file is run.
"""

from __future__ import annotations

from os import PathLike

from torch import Tensor

from gpart.serialization.checkpoint_file import read_checkpoint
from gpart.serialization.folder import read_folder
from gpart.serialization.manifest import Manifest


def read_adapter(source: str | PathLike[str], name: str | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """The adapter in a folder or a ``.ckpt``.

    Args:
        source: an adapter folder, or a ``.ckpt`` file; a path, or a URL that fsspec knows (``s3://...``).
        name: which one, of a ``.ckpt`` that holds several.

    Returns:
        Its manifest; and theta, the saved modules' parameters and the changed buffers by their names in a folder.

    Raises:
        GPartFileError: if there is none, or a file is missing in it.
        GPartError: if a file was changed or truncated, or holds no adapter.
    """
    place = str(source)
    return read_checkpoint(place, name) if place.endswith(".ckpt") else read_folder(place)
