"""Takes named members out of a zip or tar archive.

Invariant: nothing is written outside the new folder. A single member goes to a name of the caller's own; where the
caller names a folder of the archive, the names below it come from the archive, and one that is anything but plain
parts between slashes is refused. Links are followed inside the archive only.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# What the readers raise for a broken archive; not OSError at large, which a full disk raises too.
_DAMAGED = (EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error)
# What a part of a name from an archive may be. What is allowed is listed, since what is dangerous differs between
# systems: "..", a drive's colon, a backslash, a NUL, a dot or blank at the end.
_PART = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)


@dataclass(frozen=True)
class _Archive:
    """The two questions put to an archive, the same for zip and tar."""

    names: Callable[[], list[str]]
    """Of all members, as they stand in the archive; a folder's ends with a slash."""
    open: Callable[[str], IO[bytes] | None]
    """A member for reading, None for what is not a file; KeyError where there is none."""


def unpack(archive: Path, files: Iterable[tuple[str, str]], folder: Path) -> dict[str, int]:
    """Writes members of an archive into a new folder.

    Args:
        archive: a zip file if called ``.whl`` or ``.zip``, else a tar file.
        files: pairs of a member and the name that it gets. ``outer.tar.gz!inner`` is a member of a member; a member
            and a name that end with a slash are a folder with all that lies below it.
        folder: where to; must not exist.

    Returns:
        The files written, relative to the folder and with slashes, and their sizes.

    Raises:
        ValueError: the archive is damaged, lacks a member, has no file below a folder, or has one there whose name
            could lead out of it or is there twice. The message names the archive and the member.
    """
    folder.mkdir()
    sizes: dict[str, int] = {}
    for member, target in files:

        def write(below: str, source: IO[bytes], target: str = target) -> None:
            path = folder / (target + below)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                sink = path.open("xb")
            except (FileExistsError, NotADirectoryError) as error:  # also where only upper and lower case differ
                raise ValueError(f"{archive}: more than one member would become {target + below!r}") from error
            with sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            sizes[target + below] = path.stat().st_size

        try:
            with archive.open("rb") as file:
                _read(file, archive, member, write)
        except _DAMAGED as error:
            raise ValueError(f"{archive}: can't read {member!r}, the archive is damaged: {error}") from error
    return sizes


def _read(file: IO[bytes], label: Path, member: str, write: Callable[[str, IO[bytes]], None]) -> None:
    """Hands the member, or each file below it and its name there, to ``write``."""
    outer, _, inner = member.partition("!")
    with _opened(file, label) as archive:
        if inner:
            with _source(archive, label, outer) as source:
                _read(source, label / outer, inner, write)
            return
        for below in _below(archive.names(), label, outer) if outer.endswith("/") else [""]:
            with _source(archive, label, outer + below) as source:
                write(below, source)


@contextmanager
def _opened(file: IO[bytes], label: Path) -> Iterator[_Archive]:
    if label.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(file) as zipped:
            # orig_filename, because zipfile itself cuts a name at a NUL and may change its slashes
            yield _Archive(lambda: [member.orig_filename for member in zipped.infolist()], zipped.open)
    else:
        with tarfile.open(fileobj=file, mode="r:*") as tarred:
            yield _Archive(lambda: [member.name + "/" * member.isdir() for member in tarred], tarred.extractfile)


@contextmanager
def _source(archive: _Archive, label: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        source = archive.open(member)
    except KeyError as error:
        raise ValueError(f"{label} has no member {member!r}") from error
    if source is None:
        raise ValueError(f"{label}: the member {member!r} is not a file")
    with source:
        yield source


def _below(names: list[str], label: Path, prefix: str) -> list[str]:
    """The names of the files below a folder, without the folder's own, each of plain parts only."""
    found: list[str] = []
    for name in names:
        below = name.removeprefix(prefix)
        if not name.startswith(prefix) or not below:
            continue
        if not all(_PART.fullmatch(part) for part in below.removesuffix("/").split("/")):
            raise ValueError(f"{label}: the name of the member {name!r} could lead out of the folder {prefix!r}")
        if not name.endswith("/"):
            found.append(below)
    if not found:
        raise ValueError(f"{label} has no file below {prefix!r}")
    return found
