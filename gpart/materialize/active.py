"""Which of a model's adapters are active: whose updates are in the weights, and whose heads stand in the model.

Invariant: a switch changes no theta and no stored weight. What the active adapters add is summed,
W = W0 + c_1 P_1·theta_1 + c_2 P_2·theta_2 + ..., and with none of them active the model computes what the base does. By
PEFT's rule theta and head of an active adapter require gradients, and those of the others do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpart.errors import GPartError
from gpart.injection.heads import Place, lay_by, take_up
from gpart.injection.modules import CONTAINER, Adapters, Theta
from gpart.injection.names import child_of
from gpart.injection.snapshot import Snapshot, gradients_of, put_buffers, put_gradients
from gpart.injection.surgery import add_hooks, check_wirable, laid_aside, remove_hooks, wire
from gpart.injection.targets import Plan
from gpart.materialize.several import Term, readers
from gpart.materialize.weights import Weights


class Member(Protocol):
    """An attached adapter: :class:`gpart.adapter.GPartAdapter`."""

    name: str
    model: nn.Module
    home: nn.Module
    plan: Plan
    weights: Weights
    snapshot: Snapshot
    hooks: list[RemovableHandle]

    @property
    def theta(self) -> nn.Parameter:
        """Its theta."""

    def saved_parameters(self) -> dict[str, Tensor]:
        """Its own parameters of ``modules_to_save`` by name."""

    def changed_buffers(self) -> dict[str, Tensor]:
        """Its own values of buffers by name."""


def container_of(model: nn.Module) -> Adapters | None:
    """What holds the adapters of this very module; None where it has none."""
    found = child_of(model, CONTAINER) or model.__dict__.get(CONTAINER)  # in the second place where home is below
    if not isinstance(found, Adapters):
        return None
    return found if any(member.model is model for member in members(found).values()) else None


def members(container: Adapters) -> dict[str, Member]:
    """The adapters by name, in the order in which they were attached."""
    return {name: child.adapter for name, child in container._modules.items() if isinstance(child, Theta)}


def check_no_batch(container: Adapters) -> None:
    """Checks that no batch of several adapters is open, whose layers could not be put back after a change.

    Raises:
        GPartError: if one is.
    """
    if container.open_batch:
        raise GPartError(
            f"a batch of adapters {list(dict.fromkeys(container.open_batch))} is open (adapter.batch): leave it before"
            " another one, or before the model's adapters are changed"
        )


def switch(
    container: Adapters, factors: Mapping[str, float], heads: str | None = None, leaving: Member | None = None
) -> None:
    """Makes these adapters the active ones.

    Args:
        container: what holds the adapters; nothing of them is merged.
        factors: by name, what the update of each is multiplied by, in the order in which they are summed.
        heads: whose saved modules stand in the model where several of them have the same.
        leaving: an adapter that is about to be taken off: layers that it alone adapts become plain again.

    Raises:
        GPartError: if an adapter is not there, several have the same saved module and ``heads`` names none of them, a
            batch is open, or something has changed a layer since; nothing is changed then.
    """
    standing = check_switch(container, factors, heads, leaving)
    every, before = members(container), container.active_factors
    old, new = [every[name] for name in before], [every[name] for name in factors]
    touched = {weight.name: weight for member in (*old, *new) for weight in member.plan.weights}
    if leaving is not None:
        touched |= {weight.name: weight for weight in leaving.plan.weights}
    wanted = readers([Term(member.weights, factors[member.name]) for member in new], touched.values())
    wanted |= dict.fromkeys(_plain_without(every, leaving))
    model = next(iter(every.values())).model
    if (list(before), heads) != (list(factors), container.heads):
        _switch_heads(container, old, new, standing)  # takes memory, and so comes before what can hardly fail
    wire(model, wanted)
    for member in old:
        if member not in new:
            remove_hooks(member.hooks)
            member.weights.total = None  # which holds the others of the sum
            member.theta.requires_grad_(False)
    for member in new:
        member.theta.requires_grad_(True)
        if not member.hooks:
            weights = member.weights
            layer = (weights.enter_layer, weights.leave_layer)
            member.hooks += add_hooks(model, member.plan, (weights.scope.enter, weights.scope.leave), layer)
    container.active_factors, container.heads = dict(factors), heads


def check_switch(
    container: Adapters, names: Iterable[str], heads: str | None = None, leaving: Member | None = None
) -> dict[str, str]:
    """Checks that :func:`switch` can be done, also on a model that is to be unmerged before.

    Args:
        container: what holds the adapters.
        names: of those that are to be active.
        heads: as for :func:`switch`.
        leaving: the same.

    Returns:
        By saved parameter, the adapter whose own is to stand in the model.

    Raises:
        GPartError: if not, see :func:`switch`.
    """
    check_no_batch(container)
    every = members(container)
    standing = _standing([_found(every, name) for name in names], heads)
    check_wirable(next(iter(every.values())).model, dict.fromkeys(_plain_without(every, leaving)))
    return standing


def _plain_without(every: Mapping[str, Member], leaving: Member | None) -> list[Place]:
    """What only an adapter that is about to be taken off adapts."""
    if leaving is None:
        return []
    left = {place for member in every.values() if member is not leaving for place in member.plan.places}
    return [place for place in leaving.plan.places if place not in left]


def _switch_heads(container: Adapters, old: list[Member], new: list[Member], standing: Mapping[str, str]) -> None:
    for member in old:
        names = [name for name, other in container.standing.items() if other == member.name]
        lay_by(member.model, _holder(container, member), member.snapshot, names)
    if old:
        model, snapshot = old[0].model, old[0].snapshot
        put_buffers(model, {name: snapshot.first(name) for name in snapshot.moved_buffers(model)})
        container.standing = {}
    buffers = True
    for member in new:
        wanted = {name for name, other in standing.items() if other == member.name}
        buffers = not take_up(member.model, _holder(container, member), member.snapshot, wanted, buffers) and buffers
    container.standing = dict(standing)


def _holder(container: Adapters, member: Member) -> Theta:
    holder = container._modules[member.name]
    if not isinstance(holder, Theta):
        raise RuntimeError(f"{member.name} is no theta's holder")
    return holder


def _found(every: Mapping[str, Member], name: str) -> Member:
    if name not in every:
        raise GPartError(f"the model carries no adapter {name!r}; it carries {list(every)}")
    return every[name]


def _standing(new: list[Member], heads: str | None) -> dict[str, str]:
    """Whose parameters stand in the model: the saved ones of each active adapter."""
    if heads is not None and heads not in [member.name for member in new]:
        raise GPartError(f"heads={heads!r} is none of the active adapters {[member.name for member in new]}")
    standing: dict[str, str] = {}
    for member in sorted(new, key=lambda member: member.name != heads):  # the chosen one first, wherever it is named
        for name in member.plan.saved:
            other = standing.setdefault(name, member.name)
            if other not in (member.name, heads):
                raise GPartError(
                    f"adapters {other!r} and {member.name!r} both have a {name} of their own, and one can stand in the model:"
                    f" say heads={other!r} or heads={member.name!r}"
                )
    return standing


@contextmanager
def bare(model: nn.Module) -> Iterator[set[str]]:
    """Within it the model is as if it carried no adapter.

    Yields:
        The names of the parameters that the adapters it carries save.

    Raises:
        GPartError: if it is merged, a batch is open, or something has changed a layer since.
    """
    container = container_of(model)
    if container is None:
        yield set()
        return
    every = list(members(container).values())
    first = every[0]
    if first.weights.bases is not None:
        raise GPartError(f"the model is merged with adapters {list(container.active_factors)}: unmerge() first")
    factors, heads, gradients = dict(container.active_factors), container.heads, gradients_of(model)
    switch(container, {})
    try:
        with laid_aside(model, first.home):
            yield {name for member in every for name in member.plan.saved}
    finally:
        switch(container, factors, heads)
        put_gradients(gradients)


def first_values(container: Adapters | None, name: str) -> dict[str, Tensor]:
    """The base's values of the parameters in whose place those of other adapters than this one stand."""
    if container is None:
        return {}
    every = members(container)
    return {saved: every[other].snapshot.first(saved) for saved, other in container.standing.items() if other != name}
