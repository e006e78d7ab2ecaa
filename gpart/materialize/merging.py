"""Merging: what the active adapters compute, written into the stored weights, and taken back bit for bit.

Invariant: a merged weight is the very sum that the layers read before, rounded once; W0 is kept until it is put back.
Merging is all or nothing: where it is refused or broken off, the weights that were written get their W0 back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.injection.modules import Adapters, theta_key
from gpart.injection.names import get_parameter, named_parameters
from gpart.injection.tensors import in_one_memory, is_packed, same_bits
from gpart.materialize.active import Member, members
from gpart.materialize.several import Sum, Term, summed


@torch.no_grad()
def merge(container: Adapters) -> None:
    """Writes the sum of W0 and the active adapters' updates into the stored weights; twice is once.

    Raises:
        GPartError: if a weight is packed, and so cannot hold the sum, the base weights are sharded, a theta is not
            finite, or an adapted weight shares memory with another parameter.
    """
    every = members(container)
    active = [every[name] for name in container.active_factors]
    if not active or active[0].weights.bases is not None:
        return
    for member in active:
        check_mergeable(member)
        check_finite({theta_key(member.name): member.theta}, f"adapter {member.name!r} cannot be merged")
    sums = Sum(Term(member.weights, container.active_factors[member.name]) for member in active)
    bases: dict[str, Tensor] = {}
    for member in every.values():
        member.weights.bases = bases  # before the first write: from here on unmerge() gives back what was written
    try:
        with ExitStack() as scopes:  # within which what all weights start from is computed once
            for member in active:
                scopes.enter_context(member.weights.scope.held())
            for name, terms in sums.terms.items():
                stored = get_parameter(active[0].model, name)
                base = stored.detach().clone()
                value = summed(terms, [every[term.weights.name].theta for term, _ in terms], base)
                bases[name] = base
                _write(stored, value)
    except BaseException:  # Ctrl-C too
        unmerge(container)
        raise


@torch.no_grad()
def unmerge(container: Adapters) -> None:
    """Puts the stored weights back to W0, bit for bit."""
    every = list(members(container).values())
    for name, base in (every[0].weights.bases or {}).items():  # all have the same
        stored = get_parameter(every[0].model, name)
        if not same_bits(stored, base):  # what torch has refused to write to, it would refuse again
            _write(stored, base)
    for member in every:
        member.weights.bases = None


def _write(stored: Tensor, value: Tensor) -> None:
    """Puts numbers into a stored weight; torch writes to one that was made in inference mode outside it, and then raises."""
    with torch.inference_mode() if stored.is_inference() else nullcontext():
        stored.copy_(value)


def check_mergeable(adapter: Member) -> None:
    """Checks that the weights can hold W0 + P·theta.

    Raises:
        GPartError: if a weight is packed, the base weights are sharded, or an adapted weight and another parameter (not one
            parameter that several modules have) are in one memory.
    """
    if adapter.weights.sharded:
        raise GPartError(f"adapter {adapter.name!r} is sharded: load its file into a whole model, and merge there")
    for weight in adapter.plan.weights:
        if is_packed(stored := get_parameter(adapter.model, weight.name)):
            raise GPartError(
                f"{weight.name} is packed ({type(stored).__name__}) and would round W0 + P·theta to its few bits:"
                " load the base in bfloat16 or float32 to merge, with check_base=False (--no-check-base), as it is another"
                " base by its fingerprint"
            )
    adapted = {weight.name for weight in adapter.plan.weights}
    for first, second in in_one_memory(named_parameters(adapter.model)):
        if adapted & {first, second}:
            raise GPartError(
                f"{first} and {second} are two parameters in one memory, which cannot hold W0 + P·theta of both: make them one"
                " parameter before attach (tie them), or give one of them memory of its own (value.data = value.data.clone())"
            )


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Checks that every number is finite; whole numbers are.

    Raises:
        GPartError: if not, with how many are not.
    """
    for name, value in tensors.items():
        plain = value.detach().float() if value.element_size() == 1 else value.detach()  # float8 has no isfinite
        if bad := int((~torch.isfinite(plain)).sum()):
            raise GPartError(f"{source}: {bad} of the {value.numel()} numbers of {name} are NaN or infinite")
