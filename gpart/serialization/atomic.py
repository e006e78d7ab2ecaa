"""Replacing a file as a whole.

Invariant: a reader finds the old file or the new one, whenever the writing process is killed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Replaces a file as a whole: what is written goes beside it, is synced and renamed; an exception leaves the old.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, replacing(Path(folder, "a")) as file:
        ...     written = file.write(b"whole")
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        # Not tempfile: its files are the owner's alone, these are to have the user's usual permissions.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
