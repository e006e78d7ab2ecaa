"""Extracts named members of a zip or tar archive.

Invariant: nothing is written outside the new folder. For a single member, the caller chooses the file's name. For a
folder of the archive, the names below it come from the archive, so that each of them is checked: a name that is not
made of plain words between slashes is refused. Links are followed inside the archive only.
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

from gpart.errors import GPartError

# What the readers raise for a damaged archive. OSError is left out: a full disk raises it too.
_DAMAGED = (EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error)
# What may stand between the slashes of a name from an archive. It is a list of what is allowed, since systems differ in
# what is dangerous: "..", a drive's colon, a backslash, a NUL, a dot or blank at the end.
_PART = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)


@dataclass(frozen=True)
class _Archive:
    """An archive, with the same two functions for zip and tar."""

    names: Callable[[], list[str]]
    """Returns the names of all members, as the archive has them. A folder's name ends with a slash."""
    open: Callable[[str], IO[bytes] | None]
    """Opens a member for reading. It returns None for a member that is not a file, and raises KeyError if none has
    this name."""


def unpack(archive: Path, files: Iterable[tuple[str, str]], folder: Path) -> dict[str, int]:
    """Writes members of an archive into a new folder.

    Args:
        archive: a zip file if its name ends in ``.whl`` or ``.zip``, else a tar file.
        files: pairs of a member and the name of the file that it becomes. ``outer.tar.gz!inner`` is a member of a
            member. A member and a name that end with a slash mean a folder with everything below it.
        folder: the folder to write into; it must not exist.

    Returns:
        The size of each file written, by its path relative to the folder, with forward slashes.

    Raises:
        GPartError: if the archive is damaged, lacks a member, or has no file below a folder; or if a name in it could
            lead out of the folder, or is there twice. The message names the archive and the member.
    """
    folder.mkdir()
    sizes: dict[str, int] = {}
    for member, target in files:

        def write(below: str, source: IO[bytes], target: str = target) -> None:
            path = folder / (target + below)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                sink = path.open("xb")
            except (FileExistsError, NotADirectoryError) as error:  # also of names that differ in case only
                raise GPartError(f"{archive}: more than one member would become {target + below!r}") from error
            with sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            sizes[target + below] = path.stat().st_size

        try:
            with archive.open("rb") as file:
                _read(file, archive, member, write)
        except _DAMAGED as error:
            raise GPartError(f"{archive}: can't read {member!r}, the archive is damaged: {error}") from error
    return sizes


def _read(file: IO[bytes], label: Path, member: str, write: Callable[[str, IO[bytes]], None]) -> None:
    """Calls ``write`` with the member, or with each file below it and that file's name there."""
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
            # orig_filename, because zipfile cuts a name at a NUL and may change its slashes
            yield _Archive(lambda: [member.orig_filename for member in zipped.infolist()], zipped.open)
    else:
        with tarfile.open(fileobj=file, mode="r:*") as tarred:
            yield _Archive(lambda: [member.name + "/" * member.isdir() for member in tarred], tarred.extractfile)


@contextmanager
def _source(archive: _Archive, label: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        source = archive.open(member)
    except KeyError as error:
        raise GPartError(f"{label} has no member {member!r}") from error
    if source is None:
        raise GPartError(f"{label}: the member {member!r} is not a file")
    with source:
        yield source


def _below(names: list[str], label: Path, prefix: str) -> list[str]:
    """Returns the names of the files below a folder, relative to it, after checking each of them."""
    found: list[str] = []
    for name in names:
        below = name.removeprefix(prefix)
        if not name.startswith(prefix) or not below:
            continue
        if not all(_PART.fullmatch(part) for part in below.removesuffix("/").split("/")):
            raise GPartError(f"{label}: the name of the member {name!r} could lead out of the folder {prefix!r}")
        if not name.endswith("/"):
            found.append(below)
    if not found:
        raise GPartError(f"{label} has no file below {prefix!r}")
    return found
