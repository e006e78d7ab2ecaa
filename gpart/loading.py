"""Reading an adapter from disk onto a model.

Invariant: nothing is loaded unless every byte is the one that was written and the model is the one that the adapter was
trained on: same scheme, same settings, same adapted weights in the same order with the same shapes, same D, same base.
Every check comes before the first change, so a refused model is as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from os import PathLike
from typing import overload

import torch
from torch import Tensor, nn

from gpart.adapter import GPartAdapter, attach_plan, get_adapters
from gpart.config import GPartConfig, IndicesSetting, MemoryPolicy, WeightsSetting
from gpart.errors import GPartError
from gpart.injection.facts import facts_of
from gpart.injection.fingerprint import Sample, differing, fingerprint, is_base
from gpart.injection.forgotten import randomly_initialised
from gpart.injection.modules import check_name, theta_key
from gpart.injection.names import get_parameter, is_offloaded, named_buffers, unwrapped
from gpart.injection.nearby import another_head, hint
from gpart.injection.targets import Plan, plan
from gpart.materialize.active import bare, check_no_batch, container_of
from gpart.materialize.merging import check_finite
from gpart.serialization.authors import Backend, read_authors
from gpart.serialization.manifest import WITH_PADDING_ROWS, Manifest
from gpart.serialization.sources import read_adapter

_MAP = ("d", "seed", "isometric", "projection", "modules_to_save")
"""The settings that are compared as they stand; the others say which weights are adapted, which may be said in several ways."""

Source = str | PathLike[str]
"""Of an adapter: a folder, a ``.ckpt``, a URL, a name on the hub."""


@overload
def load_adapter(
    model: nn.Module,
    folder: Source,
    check_base: bool = True,
    indices: IndicesSetting = "auto",
    weights: WeightsSetting = "auto",
    name: str | None = None,
) -> GPartAdapter: ...


@overload
def load_adapter(
    model: Source,
    folder: None = None,
    check_base: bool = True,
    indices: IndicesSetting = "auto",
    weights: WeightsSetting = "auto",
    name: str | None = None,
    *,
    base: str | None = None,
) -> tuple[nn.Module, GPartAdapter]: ...


def load_adapter(
    model: nn.Module | Source,
    folder: Source | None = None,
    check_base: bool = True,
    indices: IndicesSetting = "auto",
    weights: WeightsSetting = "auto",
    name: str | None = None,
    *,
    base: str | None = None,
) -> GPartAdapter | tuple[nn.Module, GPartAdapter]:
    """Attaches the adapter in a folder, or in a Lightning ``.ckpt``, to a model and puts its values there.

    ``load_adapter("adapters/film")``, without a model, builds the base that the adapter names, and returns both.

    Args:
        model: the base model, with other adapters or without, or with one of the same name and config, which is filled,
            with a warning where it was loaded from elsewhere and no ``name`` is given; it stays active or not.
            A new adapter becomes the active one, see :func:`gpart.adapters.set_active`. Or the adapter, as ``folder``:
            the base is then built as well, in evaluation mode.
        folder: an adapter folder, or a ``.ckpt`` file; a path, or a URL that fsspec knows (``s3://...``); or a name on the
            hub, ``user/name`` or ``user/name@revision``, where nothing of this name is here. ``FILE.ckpt:NAME`` is one of
            several in a file.
        check_base: False loads onto another base of the same shape, with a warning.
        indices: as for :func:`gpart.attach`; an attached adapter keeps its own.
        weights: the same.
        name: the adapter's name in the model; default that in the file. Of a checkpoint that holds several also which one,
            where ``folder`` does not say.
        base: where no model is given, the base in place of the one that the adapter names: a folder of Transformers or
            timm, a name on the hub, ``packaged:NAME``, ``timm:NAME``, or ``python:MODULE:FUNCTION``.

    Returns:
        The attached adapter; without a model, the base model that carries it, and the adapter.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it, or there is no such base.
        GPartError: if a file was changed or truncated, or the adapter does not fit the model; the message has both
            values, and the model is as it was.
    """
    memory = MemoryPolicy(indices, weights)
    if isinstance(model, nn.Module):
        if folder is None or base is not None:
            raise GPartError(
                f"load_adapter takes a model and an adapter, or an adapter alone with base=...: got a"
                f" {type(model).__name__}, folder={folder!r} and base={base!r}"
            )
        return _load_onto(model, *read_adapter(folder, name), str(folder), name, check_base, memory)
    if folder is not None:
        raise GPartError(
            f"load_adapter takes the model, not its name: got {str(model)!r}. {str(folder)!r} alone names it"
        )
    # Only who has no model needs the libraries that build one.
    from gpart.bases.models import base_of  # noqa: PLC0415

    source = str(model)
    read = read_adapter(source, name)
    built = base_of(source, *read, base).model
    return built, _load_onto(built, *read, source, name, check_base, memory)


def _load_onto(
    model: nn.Module,
    manifest: Manifest,
    tensors: dict[str, Tensor],
    source: str,
    name: str | None,
    check_base: bool,
    memory: MemoryPolicy,
) -> GPartAdapter:
    given = name
    manifest, tensors = renamed(manifest, tensors, given)
    config, name = manifest.config, check_manifest_name(manifest, source)
    model = unwrapped(model)
    attached = get_adapters(model).get(name)
    check_labels(model, manifest, source)
    if attached is not None:
        check_attached(attached, manifest, source, check_base, ". Another name (name=...) loads it beside that one")
        made = attached.plan
    else:
        with bare(model) as beside:
            made = check_model(model, manifest, source, check_base, beside)
    tensors = check_tensors(model, made, config, name, tensors, source)
    adapter = attached or attach_plan(model, config, name, made, memory)
    fill(adapter, tensors)
    if given is None and adapter.source not in (None, source):
        warnings.warn(
            f"adapter {name!r} was loaded from {adapter.source}, and holds the numbers of {source} now: both have this name."
            " Another one (name=...) keeps both",
            stacklevel=3,
        )
    adapter.source = source
    adapter.about = replace(manifest.about.over(adapter.about), score={})  # which may not be that of the next save
    return adapter


def load_authors_adapter(
    model: nn.Module,
    folder: str | PathLike[str],
    backend: Backend | None = None,
    indices: IndicesSetting = "auto",
    weights: WeightsSetting = "auto",
    name: str = "default",
) -> GPartAdapter:
    """Attaches an adapter that the paper's own code wrote, see :mod:`gpart.serialization.authors`.

    Its file cannot tell whether this is the model that it was trained on; a warning says so, with the D that this one gives.

    Args:
        model: the base model, with other adapters or without.
        folder: theirs; a path, or a URL that fsspec knows.
        backend: which map it was trained with, where the folder does not say.
        indices: as for :func:`gpart.attach`.
        weights: the same.
        name: the adapter's name in the model.

    Returns:
        The attached adapter; its :meth:`gpart.adapter.GPartAdapter.save` writes a folder that is checked.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it.
        GPartError: if it cannot be read, or does not fit the model, which is then as it was.
    """
    source, memory, model = str(folder), MemoryPolicy(indices, weights), unwrapped(model)
    config, found = read_authors(source, backend)
    tensors = {theta_key(name) if key == theta_key("default") else key: value for key, value in found.items()}
    if check_name(name) in get_adapters(model):
        raise GPartError(f"the model carries an adapter {name!r} already")
    try:
        with bare(model):
            made = plan(model, config, padding_rows=True)  # theirs joins whole weights
    except GPartError as error:
        raise GPartError(f"{source}: {error}") from None
    check_tensors(model, made, config, name, tensors, source)
    adapter = attach_plan(model, config, name, made, memory)
    fill(adapter, tensors)
    warnings.warn(
        f"{source} has no D, no list of weights and no fingerprint to check this model by: its theta was put on D ="
        f" {made.size} weights, from {made.weights[0].name} to {made.weights[-1].name}",
        stacklevel=2,
    )
    return adapter


def unlike(adapter: GPartAdapter, first: GPartConfig, second: GPartConfig) -> list[str]:
    """One line for every setting in which two configs differ, with both values.

    None where both mean the map that the adapter is: layers may be named in several ways. Dropout is no part of it.

    Args:
        adapter: an attached one.
        first: its own config, or another.
        second: the same.
    """
    model, made = adapter.model, adapter.plan
    different = first.differences(replace(second, dropout=first.dropout))
    if not different or any(getattr(first, key) != getattr(second, key) for key in _MAP):
        return different
    if adapter.sharded or adapter.merged:
        return different  # the names of the layers cannot be looked up as they were
    try:
        with bare(model) as saved:
            beside = saved - set(made.saved)
            same = all(plan(model, one, made.padding_rows, beside) == made for one in (first, second))
    except GPartError:
        return different
    return [] if same else different


def check_attached(
    adapter: GPartAdapter, manifest: Manifest, source: str, check_base: bool = True, remedy: str = ""
) -> None:
    """Checks that an attached adapter is the one that a manifest describes.

    Args:
        adapter: the one on the model.
        manifest: read from the file.
        source: the file it came from, for messages.
        check_base: False turns a different fingerprint into a warning.
        remedy: how the error about different settings ends.

    Raises:
        GPartError: if config, weights, D or base differ, with both values.
    """
    if adapter.name != manifest.name:
        raise GPartError(f"{source} holds adapter {manifest.name!r}, the model carries {adapter.name!r}")
    if different := unlike(adapter, manifest.config, adapter.config):
        raise GPartError(
            f"{source} and the attached adapter {adapter.name!r} have different settings: {'; '.join(different)}{remedy}"
        )
    check_same(adapter.plan, adapter.base_samples(), manifest, source, check_base)


def check_model(
    model: nn.Module, manifest: Manifest, source: str, check_base: bool = True, beside: Collection[str] = ()
) -> Plan:
    """Makes the plan that the manifest's config gives on a model without an adapter, and checks that it is the same.

    Args:
        model: the module to adapt, as it was before attach.
        manifest: read from the file.
        source: the file it came from, for messages.
        check_base: False turns a different fingerprint into a warning.
        beside: as for :func:`gpart.injection.targets.plan`.

    Raises:
        GPartError: if anything differs, with both values.
    """
    try:
        made = plan(model, manifest.config, manifest.format <= WITH_PADDING_ROWS, beside)
    except GPartError as error:
        near = hint(model, manifest.weights)
        raise GPartError(f"{source} does not fit this {type(model).__name__}: {error}{near}") from error
    if forgotten := randomly_initialised(model, made.frozen):
        raise GPartError(
            f"{source} does not hold {forgotten}, which Transformers has just initialised at random since the checkpoint has"
            " none: load the adapter that holds them first, or the model from where it has them"
        )
    values = {name: get_parameter(model, name) for name in made.frozen}
    try:
        check_same(made, values, manifest, source, check_base)
    except GPartError as error:
        near = hint(model, manifest.weights) if made.described() != manifest.weights else ""
        raise GPartError(f"{error}{near}") from None
    return made


def check_labels(model: nn.Module, manifest: Manifest, source: str) -> None:
    """Checks that a model does not name an adapter's classes in another order, as its config may.

    Raises:
        GPartError: if it does, with both lists.
    """
    its, mine = manifest.about.labels, facts_of(model).get("labels")
    # Other names may be those of the task that the base was trained on before.
    if its is not None and mine is not None and its != mine and sorted(its) == sorted(mine):
        raise GPartError(
            f"{source} has the classes {its} in this order, and this model's config has {mine}: its answers would go by"
            " wrong names. Leave the labels out, or give them (a model's id2label) in the adapter's order"
        )


def check_same(
    made: Plan,
    frozen: Mapping[str, torch.Tensor | Sample],
    manifest: Manifest,
    source: str,
    check_base: bool = True,
    remedy: str = "; check_base=False loads it all the same",
) -> None:
    """Checks a plan and a base against a manifest: weights, shapes, order, D, fingerprint.

    Args:
        made: what the settings come to on this model.
        frozen: the base's parameters by name.
        manifest: read from the file.
        source: the file it came from, for messages.
        check_base: False turns a different fingerprint into a warning.
        remedy: how the error about another base ends.

    Raises:
        GPartError: if anything differs, with both values.
    """
    mine = made.described()
    its = manifest.weights
    if not isinstance(its, list):
        raise GPartError(f"{source} has no list of adapted weights: {its!r}")
    if mine != its:
        if manifest.format <= WITH_PADDING_ROWS and not made.padding_rows and [item[:2] for item in mine] == its:
            raise GPartError(
                f"{source} is of format {manifest.format}, which adapts the rows of padding_idx as well: it has D ="
                f" {manifest.size}, here D = {made.size} leaves them out. Load it into the model without an adapter, by"
                " load_adapter or GPartCallback(adapter=...)"
            )
        if sorted(map(str, mine)) == sorted(map(str, its)):
            at = next(i for i, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b)
            raise GPartError(f"{source} joins the weights in another order: number {at} is {its[at]}, here {mine[at]}")
        only = [item for item in its if item not in mine][:3], [item for item in mine if item not in its][:3]
        raise GPartError(
            f"{source} adapts {len(its)} weights, this model gives {len(mine)}: only there {only[0]}, only here {only[1]}"
        )
    if manifest.size != made.size:
        raise GPartError(f"{source} has D = {manifest.size}, this model has D = {made.size}")
    if not check_base and any(value.is_meta for value in frozen.values() if isinstance(value, Tensor)):
        return  # nothing to look at: the base is offloaded
    if not is_base(frozen, manifest.base, manifest.format):
        found = fingerprint(frozen, manifest.format)
        message = f"{source} was trained on another base model: fingerprint {manifest.base}, this model has {found}"
        if others := differing(frozen, manifest.parts):
            message += f"; of {len(frozen)} frozen parameters differ {', '.join(others[:3])}"
            message += f" and {len(others) - 3} more" if len(others) > 3 else ""
        else:
            message += another_head(frozen, manifest.parts)
        kinds = {value.values[2].dtype if isinstance(value, Sample) else value.dtype for value in frozen.values()}
        if kinds - {torch.float32}:
            message += f"; here they are {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))}"
        if check_base:
            raise GPartError(f"{message}{remedy}")
        warnings.warn(f"{message}; loaded all the same, since check_base=False", stacklevel=3)


def check_tensors(
    model: nn.Module, made: Plan, config: GPartConfig, name: str, tensors: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Checks names, shapes and finiteness of an adapter's tensors before any of them is used.

    Raises:
        GPartError: if one is missing, too many, of another shape (a buffer: of another number of dimensions), or theta or
            a saved parameter is not finite.
    """
    theta = theta_key(name)
    shapes = {theta: (config.d,), **{saved: tuple(get_parameter(model, saved).shape) for saved in made.saved}}
    buffers = {buffer: tuple(value.shape) for buffer, value in named_buffers(model).items()}
    missing = sorted(set(shapes) - set(tensors))
    surplus = sorted(set(tensors) - set(shapes) - set(buffers))
    if missing or surplus:
        raise GPartError(f"{source}: tensors missing {missing}, tensors too many {surplus}")
    shapes = {**buffers, **shapes}
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise GPartError(f"{source}: {key} holds a {type(value).__name__} without plain numbers")
        # A buffer's module may have made it anew in another length, such as a table of positions for a longer text.
        if tuple(value.shape) != shapes[key] and not (key in buffers and value.dim() == len(shapes[key])):
            raise GPartError(f"{source}: {key} has shape {list(value.shape)}, this model needs {list(shapes[key])}")
    if not tensors[theta].is_floating_point():
        raise GPartError(f"{source}: {theta} holds {tensors[theta].dtype}, not floating-point numbers")
    live = {**named_buffers(model), **{saved: get_parameter(model, saved) for saved in made.saved}}
    for key, value in tensors.items():
        if key in live and _kind(value) != _kind(live[key]):
            raise GPartError(f"{source}: {key} holds {value.dtype}, this model needs {live[key].dtype}")
    if lost := [saved for saved in made.saved if is_offloaded(model, saved)]:
        raise GPartError(
            f"{source} holds {lost}, which accelerate has offloaded and would not keep: leave these modules on a device, or"
            " load the adapter before the model is offloaded"
        )
    # As it will be held: what is finite in float64 may not be in float32.
    held = {theta: torch.promote_types(torch.get_default_dtype(), torch.float32)}
    held |= {saved: live[saved].dtype for saved in made.saved}
    check_finite({key: tensors[key].to(dtype) for key, dtype in held.items()}, source)
    return tensors


def check_manifest_name(manifest: Manifest, source: str) -> str:
    """The adapter's name in a manifest, if it can be one.

    Raises:
        GPartError: if it cannot.
    """
    try:
        return check_name(manifest.name)
    except GPartError as error:
        raise GPartError(f"{source}: {error}") from None


def renamed(manifest: Manifest, tensors: dict[str, Tensor], name: str | None) -> tuple[Manifest, dict[str, Tensor]]:
    """An adapter under another name; None leaves its own."""
    if name is None or name == manifest.name:
        return manifest, tensors
    old, new = theta_key(manifest.name), theta_key(name)
    return replace(manifest, name=name), {new if key == old else key: value for key, value in tensors.items()}


@torch.no_grad()
def fill(adapter: GPartAdapter, tensors: Mapping[str, Tensor]) -> None:
    """Copies checked values into theta, the saved modules and the buffers; a buffer that has none is the base's again."""
    if (container := container_of(adapter.model)) is not None:
        check_no_batch(container)
    own = {theta_key(adapter.name): adapter.theta, **adapter.saved_parameters()}
    was_merged = adapter.merged
    if was_merged:
        adapter.unmerge()
    for key, value in tensors.items():
        if key in own:
            own[key].copy_(value)
    adapter.put_buffers({key: value for key, value in tensors.items() if key not in own})
    if was_merged:
        adapter.merge()


def _kind(value: Tensor) -> tuple[bool, bool]:
    """Whether a tensor holds floating-point numbers, and whether complex ones."""
    return value.is_floating_point(), value.is_complex()
