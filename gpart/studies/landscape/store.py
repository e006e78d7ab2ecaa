"""What has been measured, as lines of JSON in a file that only grows.

Invariant: a line is whole or it is not read, whenever the writing process is killed; what is in the file is never measured
again. A line's first part, its key, says all that its numbers depend on but the data: the run's files name those, and
whoever changes them takes another folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpart.errors import GPartError

Key = tuple[Any, ...]
"""Texts and numbers."""


class Store:
    """The measurements of one folder by their keys.

    Args:
        path: the file; it is made at the first write.

    Raises:
        GPartError: if a line is no measurement.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Store(Path(folder, "a.jsonl")).add(("run", 0, 0.5), {"loss": 0.25})
        ...     Store(Path(folder, "a.jsonl")).found
        {('run', 0, 0.5): {'loss': 0.25}}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[Key, Any] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                key, value = json.loads(line)
                self.found[tuple(key)] = value
            except (ValueError, TypeError) as error:
                raise GPartError(
                    f"{path}, line {number} is damaged ({error}): remove the line, and what it held is measured again"
                ) from error
        if len(whole) < len(content):  # the last line of a killed process: the next one would be joined to it
            os.truncate(path, len(whole))

    def add(self, key: Key, value: Any) -> None:
        """Keeps one measurement, on the disk when this returns."""
        line = json.dumps([list(key), value]) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.found[key] = value
