"""An adapter without a model: a manifest and tensors, read, computed or taken from a live one.

Invariant: a :class:`Stored` that exists is whole: theta has d finite numbers, and the layout adds up to D. It shares no
memory with a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike

import torch
from torch import Tensor

from gpart.adapter import GPartAdapter
from gpart.arithmetic.layout import Layout, layout_of
from gpart.errors import GPartError
from gpart.injection.modules import check_name, theta_key
from gpart.injection.tensors import whole
from gpart.materialize.merging import check_finite
from gpart.serialization.folder import write_folder
from gpart.serialization.manifest import Manifest, written_by
from gpart.serialization.sources import read_adapter


@dataclass(frozen=True, eq=False)
class Stored:
    """An adapter's manifest and tensors; equal to itself only, so that it can be a key.

    Args:
        manifest: what it belongs to.
        tensors: theta, the saved modules' parameters and the changed buffers, by their names in a folder.
        source: its name in messages.

    Raises:
        GPartError: if theta is missing, has not d finite numbers, or the weights do not add up to D.
    """

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    source: str = "the adapter"

    def __post_init__(self) -> None:
        try:
            key = theta_key(check_name(self.manifest.name))
        except GPartError as error:
            raise GPartError(f"{self.source}: {error}") from None
        for name, value in self.tensors.items():
            if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
                raise GPartError(f"{self.source}: {name} holds a {type(value).__name__} without plain numbers")
        theta = self.tensors.get(key)
        if theta is None:
            raise GPartError(f"{self.source} has no {key}; its tensors are {sorted(self.tensors)[:20]}")
        d = self.manifest.config.d
        if tuple(theta.shape) != (d,) or not theta.is_floating_point():
            raise GPartError(
                f"{self.source}: {key} is {theta.dtype} of shape {list(theta.shape)}, needed are {d} floats"
            )
        check_finite({key: theta}, self.source)
        _ = self.layout  # raises where it does not add up

    @classmethod
    def of(cls, adapter: GPartAdapter) -> Stored:
        """A live adapter as it is now: a copy, which later training does not change.

        Raises:
            GPartError: if theta is not finite, or a parameter outside ``modules_to_save`` is trained.
        """
        live = {theta_key(adapter.name): adapter.values, **adapter.saved_parameters(), **adapter.changed_buffers()}
        tensors = {name: whole(value.detach()).cpu().clone() for name, value in live.items()}
        return cls(adapter.manifest(), tensors, f"adapter {adapter.name!r}")

    @cached_property
    def layout(self) -> Layout:
        """Where each weight stands in the vector."""
        return layout_of(self.manifest, self.source)

    @property
    def theta(self) -> Tensor:
        """Shape (d,)."""
        return self.tensors[theta_key(self.manifest.name)]

    @property
    def heads(self) -> dict[str, Tensor]:
        """All but theta, by name: the parameters of ``modules_to_save``, and buffers."""
        return {name: value for name, value in self.tensors.items() if name != theta_key(self.manifest.name)}

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the adapter folder, for :func:`gpart.load_adapter`.

        Args:
            folder: a path, or a URL that fsspec knows; is made where it is missing.
        """
        write_folder(folder, self.manifest, self.tensors)


AdapterLike = Stored | GPartAdapter
"""What the functions of this room take."""


def read(source: str | PathLike[str], name: str | None = None) -> Stored:
    """The adapter in whatever holds one: a folder, or a Lightning ``.ckpt``.

    Args:
        source: a path, or a URL that fsspec knows.
        name: which one, of a ``.ckpt`` that holds several.

    Raises:
        GPartFileError: if there is none.
        GPartError: if a file was changed or truncated, or holds no adapter that adds up.
    """
    manifest, tensors = read_adapter(source, name)
    return Stored(manifest, tensors, str(source))


def as_stored(adapter: AdapterLike) -> Stored:
    """A stored adapter as it is, a live one by :meth:`Stored.of`.

    Raises:
        GPartError: if it is neither.
    """
    if isinstance(adapter, Stored):
        return adapter
    if isinstance(adapter, GPartAdapter):
        return Stored.of(adapter)
    raise GPartError(
        f"an adapter is what gpart.arithmetic.read(folder) gives, or a live GPartAdapter, not {type(adapter).__name__}"
    )


def made_of(
    manifest: Manifest, theta: Tensor, heads: Mapping[str, Tensor], name: str, source: str = "the result"
) -> Stored:
    """An adapter that was computed: as the manifest says, written by the libraries of now.

    Args:
        manifest: what it belongs to.
        theta: shape (d,).
        heads: all but theta, by name; copied.
        name: the new adapter's.
        source: its name in messages.

    Raises:
        GPartError: if theta is not finite any more, or the name cannot be an adapter's.
    """
    about = replace(manifest.about, score={})  # which was another's
    written = replace(manifest, name=check_name(name), versions=written_by(), about=about)
    return Stored(written, {theta_key(name): theta, **{key: value.clone() for key, value in heads.items()}}, source)


def check_same_base(first: Stored, second: Stored) -> None:
    """Checks that two adapters belong to one base.

    Raises:
        GPartError: if their fingerprints differ, with what may be the reason.
    """
    one, other = first.manifest, second.manifest
    if one.base == other.base and one.format == other.format:
        return
    message = f"{first.source} and {second.source} have different bases: fingerprints {one.base} and {other.base}"
    if one.config.modules_to_save != other.config.modules_to_save:
        message += (
            f"; these are without the saved modules, which are {one.config.modules_to_save} and"
            f" {other.config.modules_to_save}, so that they cannot tell"
        )
    elif one.format != other.format:
        message += f"; these are of formats {one.format} and {other.format}, so that they cannot tell"
    elif one.parts and len(one.parts) == len(other.parts):
        count = sum(one.parts[i : i + 2] != other.parts[i : i + 2] for i in range(0, len(one.parts), 2))
        message += f"; {count} of their {len(one.parts) // 2} parts differ"
    raise GPartError(f"{message}. check_base=False takes them for one")


def check_coefficient(value: object, what: str) -> float:
    """A number that may be multiplied with.

    Raises:
        GPartError: if it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise GPartError(f"{what} must be a finite number, got {value!r}")
    return float(value)
