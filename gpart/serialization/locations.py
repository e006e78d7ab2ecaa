"""Where a file or folder lies: a local path, or a URL that fsspec knows (``memory://``, ``s3://``, ``file://``).

Invariant: what is written appears as a whole. A local file is synced and renamed. At a URL a file goes to its place in one
transaction of its file system: object stores show it when it is complete. A URL is never taken for a local path.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.atomic import replacing

Place = str | PathLike[str]
"""A local path or a URL."""

_URL = re.compile(r"[A-Za-z][\w+.-]+(://|::.*://)")  # two letters at least: C:// is a drive; :: chains protocols
_CUT_URL = re.compile(r"([A-Za-z][\w+.-]+):/(?!/)")


def located(place: Place) -> Path | str:
    """A local path as a ``Path``, any other URL as it is.

    Raises:
        GPartError: if it is a URL that lost a slash in a ``Path``, which would be a local folder's name.

    Example:
        >>> str(located("runs/adapter")), str(located("file:///tmp/adapter")), located("memory://run/adapter/")
        ('runs/adapter', '/tmp/adapter', 'memory://run/adapter')
        >>> located(Path("s3://bucket/adapter"))
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: s3:/bucket/adapter is a URL that lost a slash, as in a Path: give s3://... as a string
    """
    text = str(place)
    if text.startswith(("file://", "local://")):
        return Path(_filesystem(text)[1])
    if _URL.match(text):
        return text.rstrip("/")
    if (cut := _CUT_URL.match(text)) and _is_protocol(cut[1]):
        raise GPartError(f"{text} is a URL that lost a slash, as in a Path: give {cut[1]}://... as a string")
    return Path(text)


def is_file(place: Path | str) -> bool:
    """Whether there is a file at a place that :func:`located` gave."""
    if isinstance(place, Path):
        return place.is_file()
    system, path = _filesystem(place)
    return bool(_asked(place, system.isfile, path))


def is_folder(place: Path | str) -> bool:
    """Whether there is a folder at a place that :func:`located` gave; an empty one need not exist at a URL."""
    if isinstance(place, Path):
        return place.is_dir()
    system, path = _filesystem(place)
    return bool(_asked(place, system.isdir, path))


def inside(folder: Path | str, name: str) -> Path | str:
    """The place of a file in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def below(folder: Path | str, ending: str) -> list[tuple[float, Path | str]]:
    """What lies below a folder under a name with an ending, each with the time when it was last written, in seconds.

    Locally these are files and folders, at a URL files. Where there is no such folder, there is nothing.
    """
    if isinstance(folder, Path):
        return [(path.stat().st_mtime, path) for path in folder.rglob(f"*{ending}")]
    system, path = _filesystem(folder)
    if not _asked(folder, system.isdir, path):
        return []
    names = [name for name in _asked(folder, system.find, path) if name.endswith(ending)]
    return [(_asked(folder, system.modified, name).timestamp(), system.unstrip_protocol(name)) for name in names]


def read(place: Path | str) -> bytes:
    """A file's content.

    Raises:
        GPartFileError: if there is none.
    """
    if isinstance(place, Path):
        try:
            return place.read_bytes()
        except FileNotFoundError as error:
            raise GPartFileError(f"there is no file {place}") from error
    system, path = _filesystem(place)
    content: bytes = _asked(place, system.cat_file, path)
    return content


def write(folder: Path | str, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder, which is made where it is missing, in the order given, each as a whole."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as file:
                file.write(content)
        return
    system, path = _filesystem(folder)
    _asked(folder, _write, system, path, files)


def readable(source: Place | IO[bytes]) -> tuple[Path | IO[bytes], str]:
    """What a reader of files can open: a local path, or the content of a URL or a file object; and its name in messages.

    A file object is read from where it stands and put back there.

    Raises:
        GPartFileError: if there is no file.
    """
    if isinstance(source, str | PathLike):
        place = located(source)
        if not is_file(place):
            raise GPartFileError(f"no checkpoint at {place}")
        return (place if isinstance(place, Path) else io.BytesIO(read(place))), str(place)
    start = source.tell() if source.seekable() else None
    content = source.read()
    if start is not None:
        source.seek(start)
    return io.BytesIO(content), str(getattr(source, "name", f"the {type(source).__name__}"))


def _write(system: Any, path: str, files: Mapping[str, bytes]) -> None:
    system.makedirs(path, exist_ok=True)
    with system.transaction:  # an exception leaves what was there
        for name, content in files.items():
            with system.open(f"{path}/{name}", "wb") as file:
                file.write(content)


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # noqa: PLC0415  # only who gives a URL needs it

    try:
        system, path = url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is not installed
        raise GPartError(f"{url} cannot be opened: {error}") from error
    return system, path


def _is_protocol(name: str) -> bool:
    from fsspec import available_protocols  # noqa: PLC0415  # only what looks like a URL needs it

    return name in available_protocols()


def _asked(place: str, what: Any, *values: Any) -> Any:
    """What a file system answers; what it raises is its own library's."""
    try:
        return what(*values)
    except FileNotFoundError as error:
        raise GPartFileError(f"there is no file {place}") from error
    except Exception as error:
        raise GPartError(f"{place} cannot be used: {type(error).__name__}: {error}") from error
