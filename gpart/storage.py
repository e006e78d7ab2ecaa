"""The adapter folder: ``adapter_model.safetensors`` and ``adapter_config.json``.

Invariant: nothing is loaded unless every byte is the one that was written and the model is the one that the adapter was
trained on; every check comes before the first change, so a refused model is as it was. No file is ever unpickled with
code in it: tensors are safetensors, and a ``.ckpt`` is read with ``torch.load(weights_only=True)``.

The tensor file holds theta, the parameters of ``modules_to_save`` and the buffers that training changed. The config
file holds the manifest (:mod:`gpart.manifest`), the tensor file's SHA-256 (safetensors has no checksum of its own) and
the SHA-256 of its own content.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from gpart import base
from gpart.adapter import GPartAdapter, _attach, get_adapters
from gpart.config import GPartConfig
from gpart.layers import CONTAINER
from gpart.manifest import check_model, check_same, config_of, manifest
from gpart.memory import Memory
from gpart.targets import Plan

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CHECKPOINT_KEY = "gpart"
"""Where a Lightning checkpoint holds the manifest and the adapted module's path."""


def save_adapter(adapter: GPartAdapter, folder: str | Path, write: bool = True) -> None:
    """Writes an adapter's folder; while merged, theta and the base's fingerprint are stored all the same.

    Each file is written beside its place, synced and renamed, the config last: a killed process leaves the old adapter
    or one that is refused, never one that loads wrongly.

    Args:
        adapter: the attached adapter.
        folder: is made where it is missing.
        write: False where another rank writes, and this one only takes part in gathering what is sharded.

    Raises:
        ValueError: if theta is not finite, or a parameter outside ``modules_to_save`` is trained.
    """
    tensors = {adapter.theta_name: adapter.values, **adapter.saved_parameters(), **adapter.changed_buffers()}
    _check_finite({adapter.theta_name: adapter.values}, "the adapter")
    gathered = {name: base.whole(value.detach()) for name, value in tensors.items()}
    if not write:
        return
    content = dump_tensors({name: value.cpu().contiguous().clone() for name, value in gathered.items()})
    described = {**manifest(adapter), "tensors_sha256": hashlib.sha256(content).hexdigest()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = _render({**described, "sha256": _content_hash(_render(described))})
    for path, written in ((folder / TENSORS, content), (folder / CONFIG, text.encode())):
        with replacing(path) as file:
            file.write(written)


def load_adapter(
    model: nn.Module, folder: str | Path, check_base: bool = True, indices: str = "auto", weights: str = "auto"
) -> GPartAdapter:
    """Attaches the adapter in a folder, or in a Lightning ``.ckpt``, to a model and puts its values there.

    Args:
        model: the base model, without an adapter, or with one of the same name and config, which is filled.
        folder: an adapter folder, or a ``.ckpt`` file.
        check_base: False loads onto another base of the same shape, with a warning.
        indices: as for :func:`gpart.attach`; an attached adapter keeps its own.
        weights: the same.

    Returns:
        The attached adapter.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        ValueError: if a file was changed or truncated, or the adapter does not fit the model; the message has both
            values, and the model is as it was.
    """
    folder, memory = Path(folder), Memory(indices, weights)
    described, tensors = _read_checkpoint(folder) if folder.suffix == ".ckpt" else _read_folder(folder)
    config, name = config_of(described, str(folder)), described["name"]
    attached = get_adapters(model).get(name)
    if attached is not None:
        check_attached(attached, described, str(folder), check_base)
        made = attached.plan
    else:
        if get_adapters(model):
            raise ValueError(f"{folder} holds adapter {name!r}; the model carries {list(get_adapters(model))}")
        if hasattr(model, CONTAINER):
            raise ValueError(
                f"the model's attribute {CONTAINER!r} is taken: {type(getattr(model, CONTAINER)).__name__}"
            )
        made = check_model(model, described, str(folder), check_base)
    tensors = check_tensors(model, made, config, name, tensors, str(folder))
    adapter = attached or _attach(model, config, name, made, memory)
    fill(adapter, tensors)
    return adapter


def check_attached(adapter: GPartAdapter, described: Any, source: str, check_base: bool = True) -> None:
    """Checks that an attached adapter is the one that a manifest describes.

    Raises:
        ValueError: if config, weights, D or base differ, with both values.
    """
    config = config_of(described, source)
    if adapter.name != described["name"]:
        raise ValueError(f"{source} holds adapter {described['name']!r}, the model carries {adapter.name!r}")
    if different := config.differences(adapter.config):
        raise ValueError(f"{source} and the attached adapter have different settings: {'; '.join(different)}")
    check_same(adapter.plan, adapter.base_samples(), described, source, check_base)


def check_tensors(
    model: nn.Module, made: Plan, config: GPartConfig, name: str, tensors: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Checks names, shapes and finiteness of an adapter's tensors before any of them is used.

    Raises:
        ValueError: if one is missing, too many, of another shape, or theta is not finite.
    """
    theta = f"{CONTAINER}.{name}.theta"
    shapes = {theta: (config.d,), **{saved: tuple(base.parameter(model, saved).shape) for saved in made.saved}}
    buffers = {buffer: tuple(value.shape) for buffer, value in base.named_buffers(model).items()}
    missing = sorted(set(shapes) - set(tensors))
    surplus = sorted(set(tensors) - set(shapes) - set(buffers))
    if missing or surplus:
        raise ValueError(f"{source}: tensors missing {missing}, tensors too many {surplus}")
    shapes = {**buffers, **shapes}
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{source}: {key} holds a {type(value).__name__} without plain numbers")
        if tuple(value.shape) != shapes[key]:
            raise ValueError(f"{source}: {key} has shape {list(value.shape)}, this model needs {list(shapes[key])}")
    if not tensors[theta].is_floating_point():
        raise ValueError(f"{source}: {theta} holds {tensors[theta].dtype}, not floating-point numbers")
    live = {**base.named_buffers(model), **{saved: base.parameter(model, saved) for saved in made.saved}}
    for key, value in tensors.items():
        if key in live and _kind(value) != _kind(live[key]):
            raise ValueError(f"{source}: {key} holds {value.dtype}, this model needs {live[key].dtype}")
    # As it will be held: what is finite in float64 may not be in float32.
    _check_finite({theta: tensors[theta].to(torch.promote_types(torch.get_default_dtype(), torch.float32))}, source)
    return tensors


@torch.no_grad()
def fill(adapter: GPartAdapter, tensors: Mapping[str, Tensor]) -> None:
    """Copies checked values into theta, the saved modules and the buffers."""
    buffers = base.named_buffers(adapter.model)
    saved = adapter.saved_parameters()
    was_merged = adapter.merged
    adapter.unmerge()
    for key, value in tensors.items():
        target = adapter.theta if key == adapter.theta_name else saved[key] if key in saved else buffers[key]
        target.copy_(value)
    if was_merged:
        adapter.merge()


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


def check_checksums(path: str | Path) -> None:
    """Checks the CRC-32 that ``torch.save`` writes with each record, since ``torch.load`` does not look at it.

    Raises:
        ValueError: if a record was changed.
    """
    if not torch.serialization.get_crc32_options():
        return  # none were written
    try:
        if not zipfile.is_zipfile(path):
            return  # torch's reader says what it is
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # on damaged files zipfile raises whatever it stumbles over
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
    if bad is not None:
        raise ValueError(f"{path} cannot be read as a checkpoint: {bad} was changed, its checksum differs")


def load_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """A ``.ckpt`` as a dict, read without running any code in it.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no checkpoint, is damaged, or holds objects that ``weights_only`` refuses.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    check_checksums(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch's reader raises whatever it stumbles over
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a checkpoint's dict")
    return loaded


def state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bits of a checkpoint's tensors: torch.load looks at no checksum itself."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        # What has no plain bits (sparse, meta) is no part of a checkpoint of ours; the checks by name refuse it.
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_digest(entry: Mapping[str, Any], state: Mapping[str, Any], source: str) -> None:
    """Checks a checkpoint's tensors against the digest that was stored with them.

    Raises:
        ValueError: if a bit was changed, with both digests.
    """
    if (found := state_digest(state)) != entry.get("sha256"):
        raise ValueError(f"{source} was changed: its state has SHA-256 {found}, written was {entry.get('sha256')}")


def reason(error: Exception) -> str:
    """What a library said, in one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no adapter at {folder}: there is no such folder")
    for needed in (folder / CONFIG, folder / TENSORS):
        if not needed.is_file():
            raise FileNotFoundError(f"no adapter at {folder}: there is no file {needed.name}")
    text = (folder / CONFIG).read_bytes().decode("utf-8", errors="replace")
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{folder / CONFIG} holds a {type(described).__name__}, not an object")
    written, found = described.pop("sha256", None), _content_hash(text)
    if written != found:
        raise ValueError(f"{folder / CONFIG} was changed: its content has SHA-256 {found}, written was {written}")
    config_of(described, str(folder / CONFIG))
    content = (folder / TENSORS).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != described.get("tensors_sha256"):
        raise ValueError(
            f"{folder / TENSORS} was changed or truncated: its {len(content)} bytes have SHA-256 {found},"
            f" the config has {described.get('tensors_sha256')}"
        )
    try:
        return described, load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{folder / TENSORS} is no safetensors file: {error}") from None


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = load_checkpoint_file(path)
    entry = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(entry, dict) or not isinstance(entry.get("module"), str):
        raise ValueError(f"{path} holds no GPart adapter; its keys are {sorted(map(str, checkpoint))}")
    config_of(entry.get("manifest"), str(path))
    prefix = f"{entry['module']}." if entry["module"] else ""
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no state_dict, but a {type(state).__name__} under that key")
    state = {key: value for key, value in state.items() if key != entry.get("hint")}
    check_digest(entry, state, str(path))
    return entry["manifest"], {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


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


def _kind(value: Tensor) -> tuple[bool, bool]:
    return value.is_floating_point(), value.is_complex()


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, value in tensors.items():
        if bad := int((~torch.isfinite(value.detach().cpu().double())).sum()):
            raise ValueError(f"{source}: {bad} of the {value.numel()} numbers of {name} are NaN or infinite")
