"""One batch whose rows belong to different adapters: each adapted layer runs once for each adapter, on its rows.

Invariant: a row's output is what its adapter alone would give it. The product of a layer is still one, (W0 + P·theta) x,
but there is one for each adapter in the batch instead of one for the batch.

Within the context the ``forward`` of every layer that one of the adapters changes, and of their saved modules, is replaced
on the instance: it sorts the rows of its first dimension by adapter, runs the module's own ``forward`` on each part, and
puts the rows back. A layer may see a multiple of the batch's rows, as with beams or windows of one sample that follow each
other. A layer with the sequence along its first dimension cannot be told from one by numbers, so it is by what stands beside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gpart.errors import GPartError
from gpart.injection.heads import Place
from gpart.injection.modules import BASE, Adapters, WeightReader
from gpart.injection.names import READERS, get_submodule, split_name
from gpart.injection.surgery import wire
from gpart.injection.targets import AdaptedWeight
from gpart.injection.tensors import dense
from gpart.materialize.active import Member, members

_Reader = tuple[WeightReader, AdaptedWeight]


@contextmanager
def batch(container: Adapters, names: Sequence[str]) -> Iterator[None]:
    """Within it the rows of what the model is given belong to these adapters, one name for each.

    Args:
        container: what holds the adapters; no batch is open.
        names: of an adapter, or ``"__base__"``; active ones or not.

    Raises:
        GPartError: if a name is not there, the model is in training mode, is merged or sharded, or an adapted layer takes
            its batch otherwise than along its first dimension (MultiheadAttention, recurrent layers).
    """
    every = members(container)
    first = next(iter(every.values()))
    used = {name: every[name] for name in dict.fromkeys(names) if name in every}
    if unknown := [name for name in names if name not in every and name != BASE]:
        raise GPartError(
            f"the model carries no adapter {unknown[0]!r}; it carries {list(every)}, and {BASE!r} is the base"
        )
    if not names:
        raise GPartError("a batch needs a name for each of its rows, got none")
    if first.model.training:
        raise GPartError("rows of several adapters are for evaluation: call model.eval() first")
    if first.weights.bases is not None or first.weights.sharded:
        state = "sharded" if first.weights.sharded else f"merged with adapters {list(container.active_factors)}"
        raise GPartError(f"the model is {state}: rows of several adapters need its own weights")
    grouped = _Grouped(names, used)
    model = first.model
    # What is active now changes layers and heads too, also for rows that are not its.
    touched = {**used, **{name: every[name] for name in container.active_factors}}
    paths = _layers(model, touched.values())
    heads = _heads(model, touched)
    before = {place: _reader(model, place) for place in _places(touched.values())}
    wire(model, {place: (grouped, weight) for place, (_, weight) in before.items()})
    replaced = [get_submodule(model, path) for path in (*paths, *heads)]
    own = [module.__dict__.get("forward") for module in replaced]  # as accelerate's hooks put there
    container.open_batch = tuple(names)
    try:
        for path in paths:
            _replace(get_submodule(model, path), grouped, None)
        for path, values in heads.items():
            _replace(get_submodule(model, path), grouped, values)
        yield
    finally:
        for module, forward in zip(replaced, own, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
        wire(model, before)
        container.open_batch = ()


class _Grouped:
    """Which rows are whose; and what layers read while the rows of one adapter are being run."""

    def __init__(self, names: Sequence[str], used: Mapping[str, Member]) -> None:
        self.names, self.used = list(names), used
        self.rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self.rows.setdefault(name, []).append(row)
        self.weights = {name: {weight.name: weight for weight in member.plan.weights} for name, member in used.items()}
        self._running = threading.local()
        self.one_at_a_time = threading.RLock()
        """For heads: ``functional_call`` puts values into the module for as long as it runs, which other threads would see."""

    @property
    def running(self) -> str | None:
        """Whose rows are being run in this thread."""
        return getattr(self._running, "name", None)

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """Within it this thread runs the rows of one adapter."""
        self._running.name = name
        try:
            yield
        finally:
            self._running.name = None

    def read(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W of the adapter whose rows are being run.

        Raises:
            GPartError: outside every layer's own ``forward``, where a weight belongs to all rows.
        """
        name = self.running
        if name is None:
            raise GPartError(
                f"{weight.name} is read outside the forward of its layer, where rows of several adapters have no one weight"
            )
        its = self.weights[name].get(weight.name) if name in self.weights else None
        return dense(base) if its is None else self.used[name].weights.read(its, base, training)


def _replace(module: nn.Module, grouped: _Grouped, heads: Mapping[str, Mapping[str, Tensor]] | None) -> None:
    module.__dict__["forward"] = partial(_forward, module, module.forward, grouped, heads)


def _forward(
    module: nn.Module,
    own: Callable[..., Any],
    grouped: _Grouped,
    heads: Mapping[str, Mapping[str, Tensor]] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A module's forward, once for each adapter on its rows."""
    if grouped.running is not None:  # a layer within one that is being run
        return own(*args, **kwargs)
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
    count = given[0].shape[0] if given else 0
    each, rest = divmod(count, len(grouped.names))
    if not count or rest:
        raise GPartError(
            f"{type(module).__name__} was given {count} rows, and there are names for {len(grouped.names)}: the batch must"
            " lie along the first dimension"
        )
    parts = []
    for name, rows in grouped.rows.items():
        index = torch.tensor([row * each + at for row in rows for at in range(each)], device=given[0].device)
        taken = partial(_taken, index=index, count=count)
        its = ([taken(value) for value in args], {key: taken(value) for key, value in kwargs.items()})
        with grouped.run(name):
            if heads is None:
                out = own(*its[0], **its[1])
            else:
                with grouped.one_at_a_time:
                    out = functional_call(module, dict(heads[name]), tuple(its[0]), its[1])
        parts.append((index, out))
    return _joined(module, parts, count)


def _taken(value: Any, index: Tensor, count: int) -> Any:
    """The rows of an argument; what has another first dimension is for all rows."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == count:
        return value.index_select(0, index)
    return value


def _joined(module: nn.Module, parts: list[tuple[Tensor, Any]], count: int) -> Any:
    """The outputs of the parts, each row in its place."""
    first = parts[0][1]
    if isinstance(first, Tensor):
        out = first.new_empty((count, *first.shape[1:]))
        for index, value in parts:
            out.index_copy_(0, index, value.to(out.dtype))
        return out
    if isinstance(first, tuple):
        columns = [[(index, value[at]) for index, value in parts] for at in range(len(first))]
        return tuple(_joined(module, column, count) for column in columns)
    if first is None:
        return None
    raise GPartError(
        f"{type(module).__name__} returns a {type(first).__name__}, and rows of several adapters can be joined in tensors and"
        " tuples of tensors only"
    )


def _places(used: Iterable[Member]) -> list[Place]:
    return list(dict.fromkeys(place for member in used for weight in member.plan.weights for place in weight.owners))


def _reader(model: nn.Module, place: Place) -> _Reader:
    path, attribute = place
    found: _Reader = get_submodule(model, path).__dict__[READERS][attribute]
    return found


def _layers(model: nn.Module, used: Iterable[Member]) -> list[str]:
    """The layers that read adapted weights.

    Raises:
        GPartError: if one takes its batch along another dimension.
    """
    paths = list(dict.fromkeys(path for path, _ in _places(used)))
    for path in paths:
        parent = get_submodule(model, path.rpartition(".")[0])
        for where, module in ((path, get_submodule(model, path)), (path.rpartition(".")[0], parent)):
            if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
                raise GPartError(
                    f"{where} ({type(module).__name__}) takes its batch in ways of its own: rows of several adapters are for"
                    " layers with the batch along the first dimension"
                )
        _check_batch_first(model, path)
    return paths


def _check_batch_first(model: nn.Module, path: str) -> None:
    """Checks that nothing says that a layer's first dimension is the sequence, whose rows would pass for beams.

    Raises:
        GPartError: if beside it or its parents stands an attention or recurrent layer with ``batch_first=False``.
    """
    parts = path.split(".")
    for parent in (".".join(parts[:depth]) for depth in range(len(parts))):
        for name, child in get_submodule(model, parent).named_children():
            if isinstance(child, (nn.MultiheadAttention, nn.RNNBase)) and not child.batch_first:
                raise GPartError(
                    f"{parent}{'.' if parent else ''}{name} ({type(child).__name__}) has batch_first=False, so that {path}"
                    " takes the sequence along its first dimension: rows of several adapters are for layers with the batch"
                    " there (batch_first=True)"
                )


def _heads(model: nn.Module, used: Mapping[str, Member]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """By path of a module that one of the adapters has saved, or changed a buffer of, the values that each has in it."""
    own = {name: {**member.saved_parameters(), **member.changed_buffers()} for name, member in used.items()}
    first = {one: used[name].snapshot.first(one) for name, values in own.items() for one in values}
    owners = {split_name(name)[0] for name in first}
    roots = [
        path for path in sorted(owners) if not any(f"{path}.".startswith(f"{other}.") for other in owners - {path})
    ]
    if "" in owners:
        roots = [""]
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for path in roots:
        prefix = f"{path}." if path else ""
        inside = [name for name in first if name.startswith(prefix)]
        found[path] = {
            name: {
                one.removeprefix(prefix): _like(model, one, own.get(name, {}).get(one, first[one])) for one in inside
            }
            for name in (*used, BASE)
        }
    return found


def _like(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A value on the device and in the dtype of what stands in the model."""
    path, attribute = split_name(name)
    standing = getattr(get_submodule(model, path), attribute)
    return value.to(standing.device, standing.dtype)
