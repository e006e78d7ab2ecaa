"""A folder that a command writes: there as a whole, or not at all.

Invariant: until the last step nothing is at the folder's own place but what was there before. What a killed process
leaves lies beside it, under a name with a dot in front, and is taken for a result by nobody.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from gpart.assets.fetching import PREFIX, cache_folder
from gpart.assets.registry import PACKAGED
from gpart.bases.models import PYTHON, TIMM
from gpart.cli.adapters import check_named
from gpart.errors import GPartError
from gpart.serialization.folder import adapter_place
from gpart.serialization.locations import located
from gpart.serialization.sources import checkpoint_of


def check_out(
    out: str, force: bool, marks: Iterable[str], written: Iterable[str], apart_from: Iterable[Path] = ()
) -> Path:
    """The place of a folder that is to be written, after the checks that need nothing loaded.

    Args:
        out: as the user gave it; ``file://`` is the local folder.
        force: whether a folder that is there may be replaced.
        marks: names of files, one of which a folder holds that this command wrote: no other folder is replaced.
        written: patterns of all names that this command writes, with a slash behind those of folders: a folder that
            holds anything else is not replaced, since that would be lost.
        apart_from: what the command reads, from :func:`base_places` and :func:`adapter_places`. It is not replaced, nor
            anything around it.

    Raises:
        GPartError: if the folder must not be written.
    """
    check_named(out)
    where = located(out)
    if not isinstance(where, Path):
        raise GPartError(f"OUT {out} is a URL, and this command writes a local folder: give one, and copy it there")
    place = where.expanduser()
    place = place.parent.resolve() / place.name if place.name not in ("", "..") else place.resolve()
    at = place.resolve()
    for other in apart_from:
        source = other.resolve()
        if os.path.lexists(other) and (source == at or at in source.parents):
            raise GPartError(f"OUT {out} would replace {other}, which is read: give another folder")
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        kind = "a link" if place.is_symlink() else "a file"
        raise GPartError(f"OUT {out} is there already, and is {kind}: give another folder")
    if not place.is_dir():
        above = next(parent for parent in place.parents if parent.exists())
        if not above.is_dir():
            raise GPartError(f"OUT {out} cannot be made: {above} is a file")
        return place
    found = sorted(path.name for path in place.iterdir())
    if found and not force:
        more = ", ..." if len(found) > 3 else ""
        raise GPartError(
            f"OUT {out} is there already and holds {', '.join(found[:3])}{more}: give another folder, or --force to replace it"
        )
    if found and not set(marks) & set(found):
        raise GPartError(
            f"OUT {out} holds none of {', '.join(marks)}: it is nothing that this command wrote, and --force does not"
            " replace it. Give another folder"
        )
    if strange := [name for name in found if not _is_written(place / name, written)]:
        more = ", ..." if len(strange) > 3 else ""
        raise GPartError(
            f"OUT {out} holds {', '.join(strange[:3])}{more}, which this command does not write and --force would delete:"
            " give another folder, or move that elsewhere"
        )
    return place


def _is_written(path: Path, patterns: Iterable[str]) -> bool:
    """Whether a file or folder has a name by which the command that is asked writes one."""
    name = f"{path.name}/" if path.is_dir() else path.name
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def base_places(name: str) -> list[Path]:
    """Where a base is read from on this machine, by the name that a user has for it; nowhere, where it is on the hub.

    Example:
        >>> [str(place) for name in ("timm:local-dir:base", "file:///tmp/base") for place in base_places(name)]
        ['base', '/tmp/base']
        >>> base_places("python:models:build"), base_places("s3://bucket/base")
        ([], [])
    """
    if name.startswith(PYTHON):
        return []
    if name.startswith(PREFIX):
        item = PACKAGED.get(name[len(PREFIX) :])
        return [] if item is None else [cache_folder() / item.folder]
    place = located(name.removeprefix(TIMM).removeprefix("local-dir:"))
    return [place] if isinstance(place, Path) else []


def adapter_places(source: str) -> list[Path]:
    """Where an adapter is read from on this machine: a file, or a folder, which is ``gpart`` in a model's.

    Raises:
        GPartFileError: if it is not there.
    """
    file = checkpoint_of(source)
    at = adapter_place(source) if file is None else located(file[0])
    return [at] if isinstance(at, Path) else []


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A new folder beside ``place``, which takes its place at the end; an exception leaves what was there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as above:
        ...     with whole_folder(Path(above, "out")) as folder:
        ...         made = (folder / "a").write_text("whole"), Path(above, "out").exists()
        ...     made, [path.name for path in Path(above, "out").iterdir()]
        ((5, False), ['a'])
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        work.mkdir()
    except OSError as error:
        raise GPartError(f"{place} cannot be written: {error}") from error
    old = work.with_suffix(".old")
    try:
        yield work
        for path in work.rglob("*"):
            if path.is_file():
                _sync(path)
        if place.is_dir() and any(place.iterdir()):
            os.replace(place, old)
        try:
            os.replace(work, place)
        except OSError:
            if old.exists():
                os.replace(old, place)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
