"""The adapter folder: ``adapter_model.safetensors`` and ``adapter_config.json``.

Invariant: what is read is, byte for byte, what was written; nothing is unpickled.

The tensor file holds theta, the parameters of ``modules_to_save`` and the buffers that training changed. The config file
holds the manifest (:mod:`gpart.serialization.manifest`), the tensor file's SHA-256 (safetensors has no checksum of its
own) and the SHA-256 of its own content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.atomic import replacing
from gpart.serialization.manifest import Manifest, read_manifest

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write_folder(folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, each as a whole.

    Each is written beside its place, synced and renamed, the config last: a killed process leaves the old adapter or one
    that is refused, never one that loads wrongly.

    Args:
        folder: is made where it is missing.
        manifest: what the tensors belong to.
        tensors: by name.
    """
    content = dump_tensors({name: value.cpu().contiguous().clone() for name, value in tensors.items()})
    described = {**manifest.to_dict(), "tensors_sha256": hashlib.sha256(content).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    text = _render({**described, "sha256": _content_hash(_render(described))})
    for path, written in ((folder / TENSORS, content), (folder / CONFIG, text.encode())):
        with replacing(path) as file:
            file.write(written)


def read_folder(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """What :func:`write_folder` wrote.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it.
        GPartError: if a file was changed or truncated, or is no adapter's.
    """
    if not folder.is_dir():
        raise GPartFileError(f"no adapter at {folder}: there is no such folder")
    for needed in (folder / CONFIG, folder / TENSORS):
        if not needed.is_file():
            raise GPartFileError(f"no adapter at {folder}: there is no file {needed.name}")
    text = (folder / CONFIG).read_bytes().decode("utf-8", errors="replace")
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GPartError(f"{folder / CONFIG} is no JSON: {error}") from None
    if not isinstance(described, dict):
        raise GPartError(f"{folder / CONFIG} holds a {type(described).__name__}, not an object")
    written, found = described.pop("sha256", None), _content_hash(text)
    if written != found:
        raise GPartError(f"{folder / CONFIG} was changed: its content has SHA-256 {found}, written was {written}")
    tensors_hash = described.pop("tensors_sha256", None)
    manifest = read_manifest(described, str(folder / CONFIG))
    content = (folder / TENSORS).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != tensors_hash:
        raise GPartError(
            f"{folder / TENSORS} was changed or truncated: its {len(content)} bytes have SHA-256 {found},"
            f" the config has {tensors_hash}"
        )
    try:
        return manifest, load_tensors(content)
    except SafetensorError as error:
        raise GPartError(f"{folder / TENSORS} is no safetensors file: {error}") from None


def _render(described: Mapping[str, Any]) -> str:
    """JSON with one adapted weight a line: short, and readable in a diff."""
    lines = []
    for key, value in described.items():
        if key == "weights":
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f' "weights": [\n  {rows}]')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _content_hash(text: str) -> str:
    """SHA-256 of the content but for the hash itself; white space and key order do not count.

    Numbers count as they are spelled: 1e-05 and 1E-05 are one flipped bit apart.
    """
    content = json.loads(text, parse_float=_spelled, parse_int=_spelled, parse_constant=_spelled)
    content.pop("sha256", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _spelled(number: str) -> list[str]:
    return ["number", number]
