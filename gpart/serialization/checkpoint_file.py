"""A Lightning checkpoint as a file: read without running code in it, with its checksums looked at.

Invariant: what reads here runs nothing of the file, and a tensor's bits are those that were written.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.serialization.inert import read_inert
from gpart.serialization.locations import Place, readable
from gpart.serialization.manifest import Manifest, read_manifest

CHECKPOINT_KEY = "gpart"
"""Where a Lightning checkpoint holds the manifest and the adapted module's path."""


SEVERAL = "adapters"
"""In that place: the entries of several adapters, where there is more than one; each with its own tensors."""

NETWORKS = "networks"
"""In that place: by the path of each adapted module, which adapters were active, where there is more than one module."""

_ZIP = b"PK\x03\x04"
"""How a file of ``torch.save`` begins; what says that it is whole stands at its end."""


_MOST_REPEATED = 1 << 28
"""Bytes of tensors that are larger than what the file holds of them. A buffer may be expanded; a file of 2 kB could claim
any size."""


def check_checksums(path: str | Path | IO[bytes], source: str | None = None) -> None:
    """Checks the CRC-32 that ``torch.save`` writes with each record, since ``torch.load`` does not look at it.

    A file whose writer had ``torch.serialization.set_crc32_options(False)`` has none, and passes.

    Args:
        path: a local file, or a file object, which is left where it starts.
        source: its name in messages; default the path.

    Raises:
        GPartError: if a record was changed.
    """
    source = str(path) if source is None else source
    bad, cut = None, False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(record.CRC for record in archive.infolist()):  # else set_crc32_options(False) wrote none
                    bad = archive.testzip()
        else:
            cut = _beginning(path) == _ZIP  # what else it is, torch's reader says
    except Exception as error:  # on damaged files zipfile raises whatever it stumbles over
        raise GPartError(f"{source} cannot be read as a checkpoint: {reason(error)}") from error
    finally:
        if not isinstance(path, str | Path):
            path.seek(0)
    if cut:
        raise GPartError(f"{source} cannot be read as a checkpoint: its end is missing")
    if bad is not None:
        raise GPartError(f"{source} cannot be read as a checkpoint: {bad} was changed, its checksum differs")


def _beginning(path: str | Path | IO[bytes]) -> bytes:
    if isinstance(path, str | Path):
        with Path(path).open("rb") as file:
            return file.read(len(_ZIP))
    path.seek(0)
    return path.read(len(_ZIP))


def load_checkpoint_file(path: Place | IO[bytes], source: str | None = None) -> dict[str, Any]:
    """A ``.ckpt`` as a dict, read without running any code in it: its objects are :class:`gpart.serialization.inert.Inert`.

    Args:
        path: a local path, a URL that fsspec knows, or a file object.
        source: its name in messages; default the path.

    Raises:
        GPartFileError: if it is not there.
        GPartError: if it is no checkpoint, or is damaged.
    """
    file, name = readable(path)
    source = name if source is None else source
    check_checksums(file, source)
    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it holds objects
            if not isinstance(file, Path):
                file.seek(0)
            loaded = read_inert(file)
    except Exception as error:  # on damaged files torch's reader raises whatever it stumbles over
        raise GPartError(f"{source} cannot be read as a checkpoint: {reason(error)}") from error
    if not isinstance(loaded, dict):
        raise GPartError(f"{source} holds a {type(loaded).__name__}, not a checkpoint's dict")
    return loaded


def state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bits of a checkpoint's tensors: torch.load looks at no checksum itself."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        if _is_plain(value):
            digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it has bits in memory: what is sparse or meta is no part of a checkpoint of ours, and refused by its name."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _check_sizes(state: Mapping[str, Any], source: str) -> None:
    """Checks that tensors which the file holds once and repeats, as ``expand`` makes them, do not fill the memory.

    Raises:
        GPartError: if they do, with both sizes.
    """
    repeated = 0
    for key, value in state.items():
        if _is_plain(value) and (size := value.numel() * value.element_size()) > value.untyped_storage().nbytes():
            repeated += size
            if repeated > _MOST_REPEATED:
                raise GPartError(
                    f"{source}: {key} has shape {list(value.shape)}, {size} bytes, of which the file holds"
                    f" {value.untyped_storage().nbytes()}; at most {_MOST_REPEATED} bytes may be repeated"
                )


def check_digest(entry: Mapping[str, Any], state: Mapping[str, Any], source: str) -> None:
    """Checks a checkpoint's tensors against the digest that was stored with them.

    Raises:
        GPartError: if a bit was changed, with both digests, or a small file's tensors would fill the memory.
    """
    _check_sizes(state, source)
    if (found := state_digest(state)) != entry.get("sha256"):
        raise GPartError(f"{source} was changed: its state has SHA-256 {found}, written was {entry.get('sha256')}")


def reason(error: Exception) -> str:
    """What a library said, in one short line."""
    said, kind = " ".join(str(error).split())[:300], type(error).__name__
    return f"{kind}: {said}" if isinstance(error, KeyError) else said or kind  # a key alone, which may be a number


def unreadable(file: Path | IO[bytes] | None, source: str, error: Exception) -> GPartError:
    """What to say where a reader of torch has refused a file: the types of the objects in it, whole, or its reason.

    Args:
        file: what was read; None where only a plugin of the user can open it.
        source: its name.
        error: what the reader said.
    """
    types: list[str] = []
    if isinstance(error, pickle.UnpicklingError) and file is not None:
        with suppress(ValueError, OSError, RuntimeError, EOFError, pickle.UnpicklingError):  # damaged
            types = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    if not types:
        return GPartError(f"{source} cannot be read as a checkpoint: {reason(error)}")
    return GPartError(
        f"{source} cannot be read with weights_only=True, which is the default: it holds {', '.join(types)}. If you trust the"
        " file, which may run any code then, pass weights_only=False, or where Lightning is older than 2.6 and has no such"
        " argument, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1; or allow the types by torch.serialization.add_safe_globals"
    )


def read_checkpoint(path: Place, name: str | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """The adapter in a Lightning ``.ckpt``: its manifest and its tensors by their names in the adapted module.

    Args:
        path: the file.
        name: which adapter, of a file that holds several.

    Raises:
        GPartFileError: if there is no such file.
        GPartError: if it is damaged, or holds no adapter, or several and none was named.
    """
    return adapter_in(load_checkpoint_file(path), str(path), name)


def adapter_in(checkpoint: Mapping[str, Any], path: str, name: str | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """As :func:`read_checkpoint`, of a file that was read.

    Raises:
        GPartError: if it holds no adapter, or several and none was named, or was changed.
    """
    found = entries_in(checkpoint, path)
    names = [read_manifest(one.get("manifest"), path).name for one in found]
    if len(found) > 1 and names.count(str(name)) != 1:
        if name is not None and name not in names:
            raise GPartError(f"{path} holds no adapter {name!r}: it holds {', '.join(map(repr, dict.fromkeys(names)))}")
        alone = [one for one in names if names.count(one) == 1]  # adapters of two networks may have one name
        how = f": name one of them, as {path}:{alone[0]}" if alone else ", and load_from_checkpoint loads all"
        got = "" if name is None else f"; got {name!r}, which is the name of {names.count(name)}"
        raise GPartError(f"{path} holds several adapters, {names}{how}{got}")
    entry = found[0] if len(found) == 1 else found[names.index(str(name))]
    manifest = read_manifest(entry.get("manifest"), path)
    inside = tensors_in(entry, checkpoint, path)
    # Where the adapted module is a container, theta stands further down in it, and has a longer key than in a folder.
    theta = f"gpart.{manifest.name}.theta"
    return manifest, {theta if key.endswith(f".{theta}") else key: value for key, value in inside.items()}


def tensors_in(entry: Mapping[str, Any], checkpoint: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """What a checkpoint holds of the module that one of its entries is of, by relative names.

    Raises:
        GPartError: if it was changed.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise GPartError(f"{path} holds no state_dict, but a {type(state).__name__} under that key")
    if isinstance(own := entry.get("tensors"), dict):  # the state is a merged module's, or that of several adapters
        check_digest(entry, own, path)
        return own
    state = {key: value for key, value in state.items() if key != entry.get("hint")}
    check_digest(entry, state, path)
    return within(entry["module"], state)


def within(path: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries below a module's path, by their names relative to it."""
    prefix = below(path)
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def below(path: str) -> str:
    """How all keys below a module's path begin.

    >>> below("net"), below("")
    ('net.', '')
    """
    return f"{path}." if path else ""


def entries_in(checkpoint: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The entries of a checkpoint's adapters, one for each.

    Raises:
        GPartError: if there is none.
    """
    entry = checkpoint.get(CHECKPOINT_KEY)
    found = entry.get(SEVERAL, [entry]) if isinstance(entry, dict) else []
    if not isinstance(found, list) or not found:
        found = [None]
    for one in found:
        if not isinstance(one, dict) or not isinstance(one.get("module"), str):
            raise GPartError(f"{source} holds no GPart adapter; its keys are {sorted(map(str, checkpoint))}")
    return found
