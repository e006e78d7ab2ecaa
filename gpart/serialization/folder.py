"""The adapter folder: ``adapter_model.safetensors`` and ``adapter_config.json``.

Invariant: what is read is, byte for byte, what was written; nothing is unpickled.

The tensor file holds theta, the parameters of ``modules_to_save`` and the buffers that training changed. The config file
holds the manifest (:mod:`gpart.serialization.manifest`), the tensor file's SHA-256 (safetensors has no checksum of its
own) and the SHA-256 of its own content.

The names are PEFT's, so Transformers and PEFT take the folder for one of theirs. Two fields of PEFT's then stand in their
errors and say what it is. Transformers looks for an adapter beside every ``config.json``: in a model's folder both files
go to a folder ``gpart`` in it, so that the model still loads.
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
from gpart.serialization.about import About, read_about
from gpart.serialization.locations import Place, inside, is_file, is_folder, located, read, write
from gpart.serialization.manifest import Manifest, read_manifest

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
AUTHORS = "GPART"
"""The ``peft_type`` of the paper's own code, see :mod:`gpart.serialization.authors`."""
BASE, BESIDE_BASE = "config.json", "gpart"
KIND = {
    "peft_type": "GPART: not one of PEFT's, gpart.load_adapter reads it",
    "base_model_name_or_path": "a GPart adapter: gpart.load_adapter reads it onto its base model",
}
"""What Transformers and PEFT show in their errors of an adapter that they do not know."""
METHOD = "method"
"""The key that only what another method has trained is described by."""
KIND_OF_METHODS = {
    "peft_type": "GPART: not one of PEFT's, gpart.callbacks.load_method reads it",
    "base_model_name_or_path": "what a method of gpart has trained: gpart.callbacks.load_method reads it onto its base model",
}


def write_folder(folder: Place, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, each as a whole.

    Each appears at its place when it is complete (:mod:`gpart.serialization.locations`), the config last: a killed process
    leaves the old adapter or one that is refused, never one that loads wrongly.

    Args:
        folder: a path or a URL; is made where it is missing. Where a model lies in it, a folder ``gpart`` in it is taken.
        manifest: what the tensors belong to.
        tensors: by name.
    """
    _write(folder, {**KIND, **manifest.to_dict()}, tensors)


def read_folder(folder: Place) -> tuple[Manifest, dict[str, Tensor]]:
    """What :func:`write_folder` wrote.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it.
        GPartError: if a file was changed or truncated, or is no adapter's.
    """
    at = adapter_place(folder)
    described, tensors_hash = _described(at)
    if isinstance(method := described.get(METHOD), str):
        raise GPartError(
            f"{at} holds what {method} has trained, not an adapter of GPart: gpart.callbacks.load_method(network, folder) and"
            f" {method}(adapter=...) read it"
        )
    manifest = read_manifest(described, str(inside(at, CONFIG)))
    return manifest, _tensors(at, tensors_hash)


def write_trained(folder: Place, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes what another method has trained, in the same two files.

    Args:
        folder: as for :func:`write_folder`.
        described: what the tensors belong to, plain values; :data:`METHOD` among them.
        tensors: by name.
    """
    _write(folder, {**KIND_OF_METHODS, **described}, tensors)


def read_trained(folder: Place) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_trained` wrote.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it.
        GPartError: if a file was changed or truncated, or is no other method's.
    """
    at = adapter_place(folder)
    described, tensors_hash = _described(at)
    if not isinstance(described.get(METHOD), str):
        raise GPartError(
            f"{at} holds an adapter of GPart, not what another method has trained: gpart.load_adapter reads it"
        )
    return described, _tensors(at, tensors_hash)


def _write(folder: Place, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    content = dump_tensors({name: value.cpu().contiguous().clone() for name, value in tensors.items()})
    described = {**described, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    text = _render({**described, "sha256": _content_hash(_render(described))})
    write(written_place(folder), {TENSORS: content, CONFIG: text.encode()})


def written_place(folder: Place) -> Path | str:
    """Where :func:`write_folder` writes the two files: into the folder, or into ``gpart`` in a model's."""
    at = located(folder)
    return inside(at, BESIDE_BASE) if is_file(inside(at, BASE)) else at


def about_in(folder: Place) -> About:
    """What a folder says of itself, whichever method wrote it; PEFT's own folder, and other libraries', say nothing.

    Raises:
        GPartFileError: if there is no such folder, or no config in it.
        GPartError: if the config was changed.
    """
    at = adapter_place(folder)
    if not _is_ours(config_of(at)[1]):
        return About()
    return read_about(_described(at)[0].get("about", {}), str(inside(at, CONFIG)))


def config_of(at: Path | str) -> tuple[str, dict[str, Any]]:
    """The config's text and content."""
    config_file = inside(at, CONFIG)
    text = read(config_file).decode("utf-8", errors="replace")
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GPartError(f"{config_file} is no JSON: {error}") from None
    if not isinstance(described, dict):
        raise GPartError(f"{config_file} holds a {type(described).__name__}, not an object")
    return text, described


def _described(at: Path | str) -> tuple[dict[str, Any], Any]:
    """The config's content, and the hash that the tensor file has to have."""
    text, described = config_of(at)
    _check_kind(described, str(at))
    written, found = described.pop("sha256", None), _content_hash(text)
    if written != found:
        raise GPartError(f"{inside(at, CONFIG)} was changed: its content has SHA-256 {found}, written was {written}")
    tensors_hash = described.pop("tensors_sha256", None)
    return {key: value for key, value in described.items() if key not in KIND}, tensors_hash


def _tensors(at: Path | str, tensors_hash: Any) -> dict[str, Tensor]:
    tensor_file = inside(at, TENSORS)
    if not is_file(tensor_file):
        raise GPartFileError(f"no adapter at {at}: there is no file {TENSORS}")
    content = read(tensor_file)
    if (found := hashlib.sha256(content).hexdigest()) != tensors_hash:
        raise GPartError(
            f"{tensor_file} was changed or truncated: its {len(content)} bytes have SHA-256 {found},"
            f" the config has {tensors_hash}"
        )
    try:
        loaded: dict[str, Tensor] = load_tensors(content)
    except SafetensorError as error:
        raise GPartError(f"{tensor_file} is no safetensors file: {error}") from None
    return loaded


def adapter_place(folder: Place) -> Path | str:
    """Where the two files lie: in a folder, or in ``gpart`` in a model's.

    Raises:
        GPartFileError: if there is no such folder, or no adapter's config in it.
    """
    at = located(folder)
    if not is_folder(at):
        if is_file(at):
            raise GPartFileError(
                f"no adapter at {at}: it is a file; give the folder that holds {CONFIG}, or a FILE.ckpt"
            )
        raise GPartFileError(f"no adapter at {at}: there is no such folder")
    if is_file(inside(at, BASE)) and is_file(inside(inside(at, BESIDE_BASE), CONFIG)):
        at = inside(at, BESIDE_BASE)
    if not is_file(inside(at, CONFIG)):
        model = f", but a model's {BASE}" if is_file(inside(at, BASE)) else ""
        raise GPartFileError(f"no adapter at {at}: there is no file {CONFIG}{model}")
    return at


def holds_adapter(folder: Place) -> bool:
    """Whether an adapter, or what another method has trained, is in a folder."""
    try:
        adapter_place(folder)
    except GPartFileError:
        return False
    return True


def _is_ours(described: Mapping[str, Any]) -> bool:
    """Whether a config is of this package: it has a checksum, and since format 2 a kind. An empty one is a damaged one."""
    return not described or bool({"sha256", "scheme"} & set(described))


def _check_kind(described: Mapping[str, Any], source: str) -> None:
    """Looks whose adapter it is.

    Raises:
        GPartError: if it is another library's.
    """
    if _is_ours(described):
        return
    if (kind := described.get("peft_type")) == AUTHORS:
        raise GPartError(
            f"{source} is a folder of the paper's own code (peft_type {kind}), not of this package:"
            " gpart.loading.load_authors_adapter reads it, and 'gpart import' makes it one of ours"
        )
    if kind is not None:
        raise GPartError(
            f"{source} holds an adapter of PEFT (peft_type {kind}), not of GPart: peft.PeftModel.from_pretrained reads it"
        )
    raise GPartError(f"{source} holds no adapter of GPart: the keys in its {CONFIG} are {sorted(described)}")


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
