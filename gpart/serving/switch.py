"""The switch: one base model, the adapters of a store, and one of them in use at a time.

Invariants: after :meth:`Switch.use` the model computes, bit for bit, what it does with this adapter loaded alone; after an
error it computes what it did before the call. Within one layout (:class:`gpart.serving.store.Layout`) a switch copies
theta and the heads into the tensors that are there: it takes O(d), nothing of the model's size is touched, and under
``torch.compile`` no new graph is made. W0 + P·theta is computed by the next forward pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from gpart.adapter import GPartAdapter, attach_plan, get_adapters
from gpart.config import IndicesSetting, MemoryPolicy, WeightsSetting
from gpart.errors import GPartError
from gpart.injection.modules import theta_key
from gpart.injection.names import get_parameter, get_submodule, split_name, stored, unwrapped
from gpart.injection.snapshot import put_buffers
from gpart.injection.targets import Plan, plan
from gpart.loading import check_same, check_tensors
from gpart.materialize.group_index import GroupIndex
from gpart.serialization.about import About
from gpart.serialization.manifest import WITH_PADDING_ROWS
from gpart.serving.store import GIB, AdapterStore, Layout, StoredAdapter

_NAME = "served"
"""What an adapter in use is called on the model; the store's names are none of Python's."""

_MOST_PLANS = 256
"""Layouts that are remembered, whatever their group indices take."""


class Switch:
    """Puts a store's adapters onto one model, one at a time; for one thread.

    Between its uses the model is the switch's: what trains it, moves single layers of it or loads other weights into it
    is not seen. ``model.to(device)`` is.

    Args:
        model: the base, without an adapter; in eval mode. It may be wrapped by ``torch.compile``.
        store: the adapters.
        indices: as for :func:`gpart.attach`.
        weights: the same.
        max_index_bytes: of stored group indices, for the layouts that were in use last.

    Raises:
        GPartError: if the model carries an adapter, or a setting is not among its choices.

    Example:
        >>> import tempfile, gpart
        >>> def base():
        ...     torch.manual_seed(0)
        ...     return nn.Sequential(nn.Linear(4, 8)).eval()
        >>> folder = tempfile.mkdtemp()
        >>> for name in ("anna", "ben"):
        ...     adapter = gpart.attach(base(), gpart.GPartConfig(d=5, target_modules=["0"]))
        ...     _ = adapter.theta.data.normal_()
        ...     adapter.save(f"{folder}/{name}")
        >>> switch = Switch(base(), AdapterStore(folder))
        >>> switch.use("ben")
        >>> x = torch.ones(1, 4)
        >>> torch.equal(switch.model(x), adapter.model(x)), switch.active
        (True, 'ben')
        >>> switch.use(None)
        >>> torch.equal(switch.model(x), base()(x))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        store: AdapterStore,
        indices: IndicesSetting = "auto",
        weights: WeightsSetting = "auto",
        max_index_bytes: int = GIB,
    ) -> None:
        if adapters := get_adapters(model):
            raise GPartError(f"a switch needs a base model without an adapter; this one carries {list(adapters)}")
        self.model, self.store, self.max_index_bytes = model, store, max_index_bytes
        self.memory = MemoryPolicy(indices, weights)
        self._plain = unwrapped(model)
        self._adapter: GPartAdapter | None = None
        self._layout: str | None = None  # the attached one's key
        self._active: StoredAdapter | None = None
        self._fitting: WeakSet[StoredAdapter] = WeakSet()  # contents whose tensors were checked against the model
        self._unfit: WeakKeyDictionary[StoredAdapter, str] = WeakKeyDictionary()  # and what is wrong with others
        self._plans: OrderedDict[str, tuple[Plan, GroupIndex | None]] = OrderedDict()
        self._bases: set[tuple[str, int, tuple[str, ...]]] = set()
        self._first: dict[str, Tensor] = {}  # of heads and buffers that adapters have values for: the base's own

    @property
    def active(self) -> str | None:
        """The name of the adapter in use; None for the base."""
        return None if self._active is None else self._active.name

    @property
    def about(self) -> About | None:
        """What the file of the adapter in use says of its task, labels and inputs; None for the base."""
        return None if self._active is None else self._active.about

    @property
    def adapter(self) -> GPartAdapter | None:
        """What is attached now; also while the base alone is in use."""
        return self._adapter

    @property
    def index_bytes(self) -> int:
        """What the stored group indices take in memory."""
        return sum(index.nbytes for _, index in self._plans.values() if index is not None)

    @torch.inference_mode(mode=False)  # what is made here is written to later, in whatever mode
    def use(self, name: str | None) -> None:
        """Switches to an adapter, as it is on disk now, or to the base.

        Args:
            name: the adapter's in the store; None for the base model, with its own heads.

        Raises:
            GPartFileError: if there is no such adapter.
            GPartError: if it is broken or does not fit the model, which then computes what it did before.
        """
        if name is None:
            self._use_base()
            return
        wanted = self.store.get(name)
        if wanted is self._active:
            return
        if wanted in self._unfit:
            raise GPartError(self._unfit[wanted])
        before = self._active
        try:
            self._check(wanted)
            if wanted.layout.key != self._layout:
                self._attach(wanted.layout)
        except GPartError as error:
            self._unfit[wanted] = str(error)
            if before is not None and self._active is None:  # what was attached had to go to find out
                self._attach(before.layout)
                self._fill(before)
            raise
        self._fill(wanted)

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        """Within it W0 + P·theta is computed once for all forward passes, without gradients, see ``adapter.cached()``.

        Yields:
            The model. Do not switch within it.
        """
        with torch.no_grad():
            if self._adapter is None:
                yield self.model
            else:
                with self._adapter.cached():
                    yield self.model

    def close(self) -> nn.Module:
        """Takes the adapter off: the model as it was before the switch was made.

        Returns:
            The model.
        """
        self._detach()
        return self.model

    def _check(self, wanted: StoredAdapter) -> None:
        """Checks once for each content that it fits the model, and each layout's base once.

        Raises:
            GPartError: if not.
        """
        if wanted in self._fitting:
            return
        source, manifest = f"adapter {wanted.name!r}", wanted.layout.manifest
        made = self._plan(wanted.layout)
        base = (wanted.base, manifest.format, made.frozen)
        if base not in self._bases or made.described() != manifest.weights or made.size != manifest.size:
            frozen = {name: get_parameter(self._plain, name) for name in made.frozen}
            check_same(made, frozen, replace(manifest, base=wanted.base), source, remedy="")
            self._bases.add(base)
        tensors = {theta_key(_NAME): wanted.theta, **wanted.others}
        check_tensors(self._plain, made, manifest.config, _NAME, tensors, source)
        self._fitting.add(wanted)

    def _plan(self, layout: Layout) -> Plan:
        """What the layout comes to on this model; made where it is not known, on the model without an adapter."""
        if layout.key not in self._plans:
            self._detach()
            manifest = layout.manifest
            made = plan(self._plain, manifest.config, padding_rows=manifest.format <= WITH_PADDING_ROWS)
            self._plans[layout.key] = (made, None)
        return self._plans[layout.key][0]

    def _attach(self, layout: Layout) -> None:
        """Puts another layout onto the model, in the place of the one that is there: the one place where that is done."""
        self._detach()
        made, index = self._plan(layout), self._plans[layout.key][1]
        self._adapter = attach_plan(self._plain, layout.manifest.config, _NAME, made, self.memory)
        self._layout = layout.key
        if index is not None:
            self._adapter.weights.index = index
        self._plans[layout.key] = (made, self._adapter.weights.index)
        self._plans.move_to_end(layout.key)
        while len(self._plans) > 1 and (self.index_bytes > self.max_index_bytes or len(self._plans) > _MOST_PLANS):
            self._plans.popitem(last=False)

    def _detach(self) -> None:
        adapter, self._adapter = self._adapter, None
        self._layout = self._active = None  # also if detach raises: nothing is then taken for what is no longer there
        self._first.clear()
        if adapter is not None:
            adapter.detach()  # heads and buffers are the base's again

    @torch.no_grad()
    def _fill(self, wanted: StoredAdapter) -> None:
        """Copies theta and the heads; what the adapter before had changed and this one does not name is put back."""
        adapter = self._adapter
        if adapter is None:
            raise GPartError(f"adapter {wanted.name!r} cannot be used: nothing is attached")
        adapter.theta.copy_(wanted.theta)
        for name, value in self._first.items():
            if name not in wanted.others:
                self._put(name, value)
        for name, value in wanted.others.items():
            if name not in self._first:
                self._first[name] = self._held(name).detach().clone()
            self._put(name, value)
        adapter.weights.disabled = 0
        self._active = wanted

    @torch.no_grad()
    def _use_base(self) -> None:
        if self._adapter is not None:
            for name, value in self._first.items():
                self._put(name, value)
            self._adapter.weights.disabled = 1
        self._active = None

    def _put(self, name: str, value: Tensor) -> None:
        """Copies a value into a head or a buffer."""
        path, attribute = split_name(name)
        if attribute in get_submodule(self._plain, path)._buffers:
            put_buffers(self._plain, {name: value})
        else:
            self._held(name).copy_(value)

    def _held(self, name: str) -> Tensor:
        """A parameter or buffer of the model as it is now; ``.to`` replaces buffers."""
        path, attribute = split_name(name)
        module = get_submodule(self._plain, path)
        buffer = module._buffers.get(attribute)
        return stored(module, attribute) if buffer is None else buffer
