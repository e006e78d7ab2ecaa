"""The manifest: what an adapter belongs to, as plain JSON values, and the check of a model against it.

Invariant: :func:`check` passes only if theta, put on this model, gives the same weights as where it was trained: same
scheme, same settings, same adapted weights in the same order with the same shapes, same D, same base.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch import nn

from gpart import base
from gpart.config import GPartConfig
from gpart.layers import check_name
from gpart.partition import SCHEME
from gpart.targets import Plan, plan
from gpart.version import __version__

if TYPE_CHECKING:
    from gpart.adapter import GPartAdapter

_FIELDS = {"scheme", "name", "config", "size", "weights", "base", "versions"}


def manifest(adapter: GPartAdapter) -> dict[str, Any]:
    """The manifest of an attached adapter.

    Returns:
        ``scheme`` (the partition scheme's name), ``name``, ``config``, ``size`` (D), ``weights`` (ordered
        ``[name, shape]`` pairs), ``base`` (the fingerprint of the frozen parameters), ``versions``.

    Raises:
        ValueError: if a parameter outside ``modules_to_save`` is trained, since theta alone would not give it back.
    """
    trained = [name for name in adapter.plan.frozen if base.parameter(adapter.model, name).requires_grad]
    if trained:
        raise ValueError(
            f"{trained[:5]} require a gradient but are not in modules_to_save={adapter.config.modules_to_save!r}:"
            " freeze them again, or name their modules there"
        )
    return {
        "scheme": SCHEME,
        "name": adapter.name,
        "config": adapter.config.to_dict(),
        "size": adapter.size,
        "weights": [[weight.name, list(weight.shape)] for weight in adapter.plan.weights],
        "base": adapter.base_fingerprint(),
        "versions": {
            "gpart": __version__,
            "torch": str(torch.__version__),
            "safetensors": safetensors.__version__,
            "python": platform.python_version(),
        },
    }


def config_of(manifest: Any, source: str) -> GPartConfig:
    """The config in a manifest read from ``source``.

    Raises:
        ValueError: if it is no manifest, or one of another scheme or version.
    """
    if not isinstance(manifest, dict) or not set(manifest) >= _FIELDS:
        found = sorted(map(str, manifest)) if isinstance(manifest, dict) else type(manifest).__name__
        raise ValueError(f"{source} is no adapter's: it needs {sorted(_FIELDS)} and holds {found}")
    if manifest["scheme"] != SCHEME:
        raise ValueError(f"{source} uses partition scheme {manifest['scheme']!r}; this version knows {SCHEME!r}")
    try:
        check_name(manifest["name"])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if not isinstance(manifest["config"], dict):
        raise ValueError(f"{source} has no settings under 'config': {manifest['config']!r}")
    try:
        return GPartConfig.from_dict(manifest["config"])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def check_model(model: nn.Module, manifest: dict[str, Any], source: str, check_base: bool = True) -> Plan:
    """Makes the plan that the manifest's config gives on a model without an adapter, and checks that it is the same.

    Args:
        model: the module to adapt, as it was before attach.
        manifest: as :func:`manifest` gave it.
        source: the file it came from, for messages.
        check_base: False turns a different fingerprint into a warning.

    Raises:
        ValueError: if anything differs, with both values.
    """
    made = plan(model, config_of(manifest, source))
    values = {name: base.parameter(model, name) for name in made.frozen}
    check_same(made, values, manifest, source, check_base)
    return made


def check_same(
    made: Plan,
    frozen: Mapping[str, torch.Tensor | base.Sample],
    manifest: dict[str, Any],
    source: str,
    check_base: bool = True,
) -> None:
    """Checks a plan and a base against a manifest: weights, shapes, order, D, fingerprint.

    Raises:
        ValueError: if anything differs, with both values.
    """
    mine = [[weight.name, list(weight.shape)] for weight in made.weights]
    its = manifest["weights"]
    if not isinstance(its, list):
        raise ValueError(f"{source} has no list of adapted weights: {its!r}")
    if mine != its:
        if sorted(map(str, mine)) == sorted(map(str, its)):
            at = next(i for i, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b)
            raise ValueError(f"{source} joins the weights in another order: number {at} is {its[at]}, here {mine[at]}")
        only = [item for item in its if item not in mine][:3], [item for item in mine if item not in its][:3]
        raise ValueError(
            f"{source} adapts {len(its)} weights, this model gives {len(mine)}: only there {only[0]}, only here {only[1]}"
        )
    if manifest["size"] != made.size:
        raise ValueError(f"{source} has D = {manifest['size']}, this model has D = {made.size}")
    if not base.is_base(frozen, manifest["base"]):
        found = base.fingerprint(frozen)
        message = f"{source} was trained on another base model: fingerprint {manifest['base']}, this model has {found}"
        if check_base:
            raise ValueError(message)
        warnings.warn(f"{message}; loaded all the same, since check_base=False", stacklevel=3)
