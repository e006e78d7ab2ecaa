"""The store: thousands of adapters of one base, in folders on disk, the last used ones in memory.

Invariants: what :meth:`AdapterStore.get` gives was read whole and its checksums agree, and it is what the files hold now:
every call looks at both files' time, size and place, and reads them again where one has changed. What is in memory is
never above the store's budget. An adapter that cannot be read is an error for its own name, and for no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from gpart.errors import GPartError, GPartFileError
from gpart.injection.modules import theta_key
from gpart.serialization.about import About
from gpart.serialization.folder import read_folder
from gpart.serialization.manifest import Manifest
from gpart.serving.names import CONFIG, TENSORS, adapter_files, check_folder, check_stored_name, listed

GIB = 1 << 30
_OVERHEAD = 4096  # bytes for an adapter's own objects; its layout is shared
_WAITS = (0.05, 0.2)  # s, until files that are being replaced agree again
_FRESH = 2.0  # s, how long ago files may have been written to be worth waiting for

Signature = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Which weights an adapter changes, and how: what two adapters share if one's theta can take the other's place.

    Each is there once in a store: adapters of one layout have the same object.
    """

    manifest: Manifest
    """Of the adapter that was read first; the others' differ in name, base and versions only."""

    key: str
    """Tells it from others, also after it was forgotten and read again."""


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter in memory; a new object for every content."""

    name: str
    """In the store: its folder's."""

    layout: Layout

    base: str
    """The fingerprint of the base model that it was trained on."""

    theta: Tensor
    """Shape (d,), on the CPU."""

    others: Mapping[str, Tensor]
    """The saved modules' parameters and the buffers that training changed, by name."""

    about: About
    """What its file says of its task, labels and inputs."""

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(value.nbytes for value in (self.theta, *self.others.values())) + _OVERHEAD


class AdapterStore:
    """The adapters in the folders below one folder, by their folders' names.

    Args:
        folder: a local one; ``folder/NAME`` is an adapter folder.
        max_bytes: of theta and heads in memory; the adapters that were not asked for longest go. Also the largest
            adapter that is read.

    Raises:
        GPartFileError: if there is no such folder.
        GPartError: if ``max_bytes`` is below 1.

    Example:
        >>> import tempfile, torch, gpart
        >>> from torch import nn
        >>> folder = tempfile.mkdtemp()
        >>> adapter = gpart.attach(nn.Sequential(nn.Linear(4, 8)), gpart.GPartConfig(d=5, target_modules=["0"]))
        >>> adapter.save(folder + "/anna")
        >>> store = AdapterStore(folder)
        >>> store.names(), store.get("anna").theta.shape
        (['anna'], torch.Size([5]))
        >>> store.get("../anna")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: an adapter's name has 1 to 64 letters, digits, '.', '_' and '-', and no '.' in front; got '../anna'
    """

    def __init__(self, folder: str | PathLike[str], max_bytes: int = GIB) -> None:
        self.folder = check_folder(folder)
        if max_bytes < 1:
            raise GPartError(f"max_bytes must be 1 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        self._held: OrderedDict[str, tuple[Signature, StoredAdapter]] = OrderedDict()
        self._nbytes = 0
        self._broken: OrderedDict[str, tuple[Signature, str]] = OrderedDict()
        self._layouts: WeakValueDictionary[str, Layout] = WeakValueDictionary()
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """What the adapters in memory take."""
        return self._nbytes

    def names(self) -> list[str]:
        """The adapters on disk now, sorted by name; broken ones too, which only reading finds out."""
        return listed(self.folder)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: str) -> StoredAdapter:
        """An adapter as it is on disk now; from memory where its files have not changed.

        Args:
            name: its folder's.

        Returns:
            The same object until a file changes.

        Raises:
            GPartFileError: if there is no such adapter.
            GPartError: if the name cannot be one, or the adapter is broken.
        """
        check_stored_name(name)
        with self._lock:
            signature = self._signature(name)
            held = self._held.get(name)
            if held is not None and held[0] == signature:
                self._held.move_to_end(name)
                return held[1]
            self._forget(name)
            broken = self._broken.get(name)
            if broken is not None and broken[0] == signature and signature is not None:
                raise GPartError(broken[1])
            return self._read(name)

    def _signature(self, name: str) -> Signature | None:
        """What changes when a file is replaced or written to; None if one is missing. Two questions to the system."""
        found = []
        for file in (CONFIG, TENSORS):
            try:
                stat = os.stat(f"{self.folder}/{name}/{file}")
            except OSError:
                return None
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev))
        return tuple(found)

    def _read(self, name: str) -> StoredAdapter:
        """Reads an adapter and holds it; where files are just being replaced, once more when they should agree."""
        for wait in (*_WAITS, None):
            before = self._signature(name)
            try:
                adapter = self._load(name)
            except GPartFileError:
                raise
            except (GPartError, OSError) as error:
                if wait is not None and _is_fresh(before):
                    time.sleep(wait)
                    continue
                message = str(error).replace(f"{self.folder / name}{os.sep}", "").replace(str(self.folder / name), name)
                text = f"adapter {name!r} is broken: {message}"
                if before is not None:
                    self._broken[name] = (before, text)
                    while len(self._broken) > 1000:
                        self._broken.popitem(last=False)
                raise GPartError(text) from error
            if before is None or before != self._signature(name):
                continue  # replaced while it was read
            self._broken.pop(name, None)
            self._hold(name, before, adapter)
            return adapter
        raise GPartError(f"adapter {name!r} is broken: its files change all the time")

    def _load(self, name: str) -> StoredAdapter:
        files = adapter_files(self.folder, name)
        if (size := sum(file.stat().st_size for file in files)) > self.max_bytes:
            raise GPartError(f"its files have {size} bytes, and the store holds at most {self.max_bytes}")
        manifest, tensors = read_folder(self.folder / name)
        key = theta_key(manifest.name)
        if (theta := tensors.pop(key, None)) is None:
            raise GPartError(f"{TENSORS} has no {key}")
        if tuple(theta.shape) != (manifest.config.d,):
            raise GPartError(f"{key} has shape {list(theta.shape)}, the config has d={manifest.config.d}")
        return StoredAdapter(name, self._layout(manifest), manifest.base, theta, tensors, manifest.about)

    def _layout(self, manifest: Manifest) -> Layout:
        values = {**manifest.to_dict(), "name": "", "base": "", "parts": "", "versions": {}, "about": {}}
        # Dropout is for training; with it left out, adapters that differ in it alone are swapped in place.
        described: dict[str, Any] = {**values, "config": {**values["config"], "dropout": 0.0}}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        layout = self._layouts.get(key)
        if layout is None:
            plain = replace(manifest, config=replace(manifest.config, dropout=0.0))
            layout = self._layouts[key] = Layout(plain, key)
        return layout

    def _hold(self, name: str, signature: Signature, adapter: StoredAdapter) -> None:
        self._forget(name)
        if adapter.nbytes > self.max_bytes:
            return
        self._held[name] = (signature, adapter)
        self._nbytes += adapter.nbytes
        while self._nbytes > self.max_bytes:
            self._forget(next(iter(self._held)))

    def _forget(self, name: str) -> None:
        if (held := self._held.pop(name, None)) is not None:
            self._nbytes -= held[1].nbytes


def _is_fresh(signature: Signature | None) -> bool:
    return signature is not None and time.time() - max(stat[0] for stat in signature) / 1e9 < _FRESH
