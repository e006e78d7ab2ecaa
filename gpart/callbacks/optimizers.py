"""Optimizers and the parameters that a method adds.

Invariant: what is trained stands in exactly one parameter group, with the settings that its project gave the weights in
whose place it is trained.

An optimizer that was made before the network was adapted (LightningCLI's ``--optimizer``, one kept from ``__init__``) holds
the weights that are frozen now. It gets the method's parameters in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from gpart.errors import GPartError

_MATRICES_ONLY = ("Muon",)
"""Optimizers that take no vectors: torch's, and the one that it comes from."""


def group_of(parameter: nn.Parameter, optimizers: Iterable[Optimizer]) -> dict[str, Any] | None:
    """The parameter group that holds this parameter, or None."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(item is parameter for item in group["params"]):
                return group
    return None


def put_in_place(
    optimizers: Sequence[Optimizer],
    added: Mapping[str, nn.Parameter],
    frozen: Iterable[nn.Parameter],
    adapted: Iterable[Tensor],
) -> str | None:
    """Puts a method's own parameters into the group that holds the most of the weights that they are trained in place of.

    The frozen weights leave all groups; the groups themselves and their settings stay, as schedulers know them.

    Args:
        optimizers: before their first step.
        added: the parameters that the method has added, by name.
        frozen: those that leave.
        adapted: those in whose place they are trained.

    Returns:
        What was done, in one line; None where there was nothing to do, or no optimizer holds frozen weights.

    Raises:
        GPartError: if all of them take matrices only, and a parameter is a vector, as theta is.
    """
    missing = {name: one for name, one in added.items() if group_of(one, optimizers) is None}
    gone, replaced = {id(one) for one in frozen}, {id(one) for one in adapted}
    groups = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
    held = [(_held(group, replaced), _held(group, gone), optimizer, group) for optimizer, group in groups]
    if not missing or not any(count for _, count, _, _ in held):
        return None
    vectors = [name for name, one in missing.items() if one.dim() != 2]
    able = [item for item in held if not vectors or type(item[2]).__name__ not in _MATRICES_ONLY]
    if not able:
        raise GPartError(
            f"{type(held[0][2]).__name__} takes matrices only, and {vectors[0]} is of shape {list(missing[vectors[0]].shape)}:"
            " return a second optimizer, as for the biases and norms of a network, or another one"
        )
    _, count, optimizer, chosen = max(able, key=lambda item: item[:2])
    going_on = {id(one) for one, group in groups if any(id(value) not in gone for value in group["params"])}
    holders = {
        id(one): type(one).__name__ for first, second, one, _ in able if first or (second and id(one) not in going_on)
    }
    if len(holders) > 1:
        rank_zero_warn(
            f"the weights that are frozen now stood in {len(holders)} optimizers, {', '.join(holders.values())}: the"
            f" {type(optimizer).__name__} that held the most of them alone trains what the method has added. Where these are"
            " optimizers of several networks, name the one to adapt: module='...', or give each a GPartCallback of its own"
        )
    for _, group in groups:
        kept = [number for number, one in enumerate(group["params"]) if id(one) not in gone]
        for key in ("params", "param_names"):  # torch keeps the names of named parameters beside them
            if key in group:
                # In place: some, as LBFGS, hold the very list, and step what is in it.
                group[key][:] = [group[key][number] for number in kept]
    chosen["params"] += missing.values()
    if "param_names" in chosen:
        chosen["param_names"] += missing
    rates = sorted({float(group["lr"]) for _, number, _, group in held if number and "lr" in group})
    several = f"; frozen weights stood in groups with the learning rates {rates}" if len(rates) > 1 else ""
    return (
        f"{type(optimizer).__name__} was made with the {count:,} weights that are frozen now: it trains the"
        f" {sum(one.numel() for one in missing.values()):,} new numbers in their place, with their group's settings"
        f" (lr={float(chosen.get('lr', 0.0)):g}){several}"
    )


def _held(group: Mapping[str, Any], parameters: set[int]) -> int:
    """How many numbers of these parameters a group holds."""
    return sum(one.numel() for one in group["params"] if id(one) in parameters)
