"""The manifest: what an adapter belongs to, as it stands in a file.

Invariant: a :class:`Manifest` that exists came from a file of a format that this version knows, with a valid config. A
key that is missing in an older format has that format's default; one that this version does not know is refused with the
version that wrote it, since theta would mean something else without it.
"""

from __future__ import annotations

import platform
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import safetensors
import torch

from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.projections.registry import SCHEMES
from gpart.serialization.about import About, read_about
from gpart.version import __version__

FORMAT = 2
"""Of the manifests that are written; the base's fingerprint is of the same. Files without the number are of format 1."""

WITH_PADDING_ROWS = 1
"""The last format in which an embedding's row of ``padding_idx`` is part of the adapted vector. An adapter from such a file
is written in its format again."""

_OLDER_DEFAULTS: dict[int, dict[str, Any]] = {}
"""By format, the settings whose default was another one then than it is in :class:`GPartConfig` now."""


@dataclass(frozen=True)
class Manifest:
    """What an adapter belongs to, as plain values."""

    name: str
    """The adapter's."""

    config: GPartConfig
    """Its settings."""

    size: int
    """D."""

    weights: list[list[Any]]
    """The adapted weights in order: ``[name, shape]``, and from format 2 on ``[name, shape, row]`` where an embedding's row
    of ``padding_idx`` is left out."""

    base: str
    """The fingerprint of the frozen parameters."""

    parts: str = ""
    """Two letters for each of them, to name what differs in another base; empty in files of format 1."""

    versions: dict[str, str] = field(default_factory=dict)
    """Of gpart and the libraries that wrote it."""

    format: int = FORMAT

    about: About = field(default_factory=About)
    """Base, task, labels, inputs and score; not written into files of format 1, whose readers refuse a key that is new."""

    @property
    def scheme(self) -> str:
        """The versioned name of the function that ``config.projection`` stands for."""
        return SCHEMES[self.config.projection]

    def to_dict(self) -> dict[str, Any]:
        """The manifest as it stands in files."""
        values = {name: getattr(self, name) for name in ("format", "scheme", "name")}
        rest = {name: getattr(self, name) for name in ("size", "weights", "base", "parts", "versions")}
        about = {} if self.format <= WITH_PADDING_ROWS else self.about.to_dict()
        return {**values, "config": asdict(self.config), **rest, **({"about": about} if about else {})}


def written_by() -> dict[str, str]:
    """The versions that a file says it was written by.

    Example:
        >>> sorted(written_by())
        ['gpart', 'python', 'safetensors', 'torch']
    """
    return {
        "gpart": __version__,
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }


def read_manifest(values: Any, source: str) -> Manifest:
    """The manifest that :meth:`Manifest.to_dict` gave.

    Args:
        values: as read from a file.
        source: the file, for messages.

    Raises:
        GPartError: if it is no manifest, or one with a format, a scheme, a key or a setting that this version does not
            know.

    Example:
        >>> config = GPartConfig(d=2, target_modules=["query"])
        >>> made = Manifest("default", config, 8, [["query.weight", [2, 4]]], "0" * 64, versions={"gpart": "0.9"})
        >>> read_manifest(made.to_dict(), "a file") == made
        True
        >>> read_manifest({**made.to_dict(), "rank": 4}, "a file")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: a file has the key 'rank', which this version does not know: gpart 0.9 wrote it
    """
    optional = {"format", "parts", "about"}
    own = {one.name for one in fields(Manifest)} - optional
    needed = own | {"scheme"}
    if not isinstance(values, dict) or not set(values) >= needed:
        found = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise GPartError(f"{source} is no adapter's: it needs {sorted(needed)} and holds {found}")
    writer = _writer(values["versions"])
    version = values.get("format", 1)
    if version not in range(1, FORMAT + 1) or isinstance(version, bool):
        raise GPartError(f"{source} is of format {version!r}; this version knows 1 to {FORMAT}: {writer} wrote it")
    if values["scheme"] not in list(SCHEMES.values()):
        known = ", ".join(map(repr, SCHEMES.values()))
        raise GPartError(
            f"{source} uses partition scheme {values['scheme']!r}; this version knows {known}: {writer} wrote it"
        )
    if unknown := sorted(set(map(str, values)) - needed - optional):
        raise GPartError(f"{source} has the key {unknown[0]!r}, which this version does not know: {writer} wrote it")
    if not isinstance(values["name"], str):
        raise GPartError(f"{source}: an adapter's name must be a text, got {values['name']!r}")
    if not isinstance(parts := values.get("parts", ""), str):
        raise GPartError(f"{source}: parts is no text, but {parts!r}")
    config = _read_config(values["config"], version, source, writer)
    if values["scheme"] != SCHEMES[config.projection]:
        raise GPartError(
            f"{source} uses partition scheme {values['scheme']!r}, but its projection={config.projection!r} is"
            f" {SCHEMES[config.projection]!r}: {writer} wrote it"
        )
    about = read_about(values.get("about", {}), source)
    read = {"config": config, "parts": parts, "format": version, "about": about}
    return Manifest(**{**{name: values[name] for name in own}, **read})


def _read_config(values: Any, version: int, source: str, writer: str) -> GPartConfig:
    if not isinstance(values, dict):
        raise GPartError(f"{source} has no settings under 'config': {values!r}")
    known = {one.name for one in fields(GPartConfig)}
    if unknown := sorted(set(map(str, values)) - known):
        raise GPartError(f"{source} has settings that this version does not know, unknown {unknown}: {writer} wrote it")
    given = {**_OLDER_DEFAULTS.get(version, {}), **values}
    required = {one.name for one in fields(GPartConfig) if one.default is MISSING and one.default_factory is MISSING}
    if missing := sorted(required - set(given)):
        raise GPartError(f"{source} lacks settings, missing {missing}: {writer} wrote it")
    try:
        return GPartConfig(**given)
    except GPartError as error:
        raise GPartError(f"{source}: {error}") from None


def _writer(versions: Any) -> str:
    found = versions.get("gpart") if isinstance(versions, dict) else None
    return f"gpart {found}" if found else "an unknown version of gpart"
