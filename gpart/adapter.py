"""The adapter: attach it to any ``nn.Module``, train theta, merge, detach.

Invariant: an adapted layer runs on W0 + P·theta in one product. Attach freezes every parameter of the model but those
of ``modules_to_save``, adds theta as the last child, and changes no stored number and no name; detach puts everything
back: the classes, the keys and their order, the bits of every weight, head and buffer.

    W = W0 + P·theta,    theta = 0 at the start,    PᵀP = I,    so ‖W - W0‖ = ‖theta‖.

Weights that torchao keeps in eight or four bits are unpacked when they are read: D counts their logical numbers, and the
layer runs on the sum in one product. With theta = 0 it then computes what the unpacked weights do, to the bit.

Source: paper, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpart.config import GPartConfig, IndicesSetting, MemoryPolicy, WeightsSetting
from gpart.errors import GPartError
from gpart.injection.facts import facts_of
from gpart.injection.fingerprint import Sample, fingerprint, parts, sample_of, shortened
from gpart.injection.heads import drop_buffers, laid_by, put_buffer, put_parameters
from gpart.injection.homes import home_of
from gpart.injection.matching import with_own_names
from gpart.injection.modules import BASE, CONTAINER, Adapters, Theta, check_name, theta_key
from gpart.injection.names import (
    get_parameter,
    get_submodule,
    is_offloaded,
    named_buffers,
    named_modules,
    replicated,
    unwrapped,
)
from gpart.injection.snapshot import Snapshot, gradients_of, put_buffers, put_gradients
from gpart.injection.surgery import (
    check_installable,
    check_wirable,
    install,
    remove,
    remove_hooks,
    rename_old_theta,
    wire,
)
from gpart.injection.targets import AdaptedWeight, Plan, plan
from gpart.injection.tensors import whole
from gpart.injection.unadapted import warn_of_unadapted
from gpart.materialize.active import (
    bare,
    check_no_batch,
    check_switch,
    container_of,
    first_values,
    members,
    switch,
)
from gpart.materialize.batch import batch
from gpart.materialize.merging import check_finite, merge, unmerge
from gpart.materialize.weights import Weights
from gpart.ops.autograd import expand
from gpart.ops.reference import delta_block
from gpart.serialization.about import About
from gpart.serialization.folder import write_folder
from gpart.serialization.manifest import FORMAT, WITH_PADDING_ROWS, Manifest, written_by


def attach(
    model: nn.Module,
    config: GPartConfig,
    name: str = "default",
    indices: IndicesSetting = "auto",
    weights: WeightsSetting = "auto",
) -> GPartAdapter:
    """Attaches a GPart adapter to ``model``, in place.

    Args:
        model: any module; its parameters outside ``config.modules_to_save`` are frozen.
        config: the adapter's settings.
        name: stands in theta's key (``gpart.<name>.theta``, below a container ``0.gpart.<name>.theta``) and in files.
        indices: the group indices: ``"stored"``, ``"computed"`` or ``"auto"``, see :class:`gpart.config.MemoryPolicy`.
        weights: W0 + P·theta: ``"kept"``, ``"forward"``, ``"recomputed"`` or ``"auto"``. Neither changes a result.

    Returns:
        The adapter. The model computes what it did before, bit for bit, until theta leaves 0.

    Raises:
        GPartError: if the config does not fit the model, the model carries an adapter already, or a parameter that
            Transformers has just initialised at random would be frozen. The model is then as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> adapter = attach(model, GPartConfig(d=5, target_modules=["0"], modules_to_save=["2"]))
        >>> adapter.size, [name for name, p in model.named_parameters() if p.requires_grad]
        (32, ['0.gpart.default.theta', '2.weight', '2.bias'])
    """
    check_name(name)
    if not isinstance(model, nn.Module):  # such as torch.compile's of a compiled module
        raise GPartError(f"model must be a torch.nn.Module, got {type(model).__name__} {model!r:.60}")
    if replicated(model):
        raise GPartError(
            f"cannot attach adapter {name!r}: DistributedDataParallel is around the model already and would not reduce"
            " theta's gradient. Attach before DDP(...) or fabric.setup(...)"
        )
    model = unwrapped(model)
    if name in (adapters := get_adapters(model)):
        raise GPartError(f"cannot attach adapter {name!r}: the model carries {list(adapters)} already")
    with bare(model) as beside:
        config = with_own_names(config, model)
        made = plan(model, config, beside=beside)
        warn_of_unadapted(model, config, made)
    return attach_plan(model, config, name, made, MemoryPolicy(indices, weights))


def attach_plan(model: nn.Module, config: GPartConfig, name: str, made: Plan, memory: MemoryPolicy) -> GPartAdapter:
    """Carries out a plan that was made for this model; :func:`attach` without its checks of what is there.

    Whatever it fails by, such as memory, the model is then as it was.

    Raises:
        GPartError: if the plan may not be carried out.
    """
    container, first = container_of(model), next(iter(get_adapters(model).values()), None)
    with bare(model):
        told = About(**facts_of(model))
        owners = (path for weight in made.weights for path, _ in weight.owners)
        home = home_of(model, owners) if first is None else first.home_path
        check_installable(model, config, name, made, get_submodule(model, home))
        snapshot = Snapshot(model, made, None if first is None else first.snapshot)
    adapter = GPartAdapter(model, config, name, made, memory, home, snapshot)
    adapter.about = told
    factors, heads = ({}, None) if container is None else (dict(container.active_factors), container.heads)
    gradients, heads_of_base = gradients_of(model), {}
    try:
        if container is not None:
            switch(container, {})
        heads_of_base = {saved: get_parameter(model, saved) for saved in made.saved}
        first_weight = made.weights[0].name
        device = torch.device("cpu") if is_offloaded(model, first_weight) else get_parameter(model, first_weight).device
        holder = Theta(config.d, device, adapter)
        switch(install(model, made, name, holder, adapter.home, snapshot.owners), {name: 1.0})
    except BaseException:
        put_parameters(model, heads_of_base, snapshot.owners)
        if adapter.attached:
            switch(adapter._container(), factors, heads, leaving=adapter)
            adapter._take_off()
        elif container is not None:
            switch(container, factors, heads)
        put_gradients(gradients)
        raise
    if home:
        adapter.renaming = rename_old_theta(model, theta_key(name), adapter.theta_name)
    return adapter


def get_adapters(model: nn.Module) -> dict[str, GPartAdapter]:
    """The adapters attached to this very module (not to a module inside it), by name."""
    model = unwrapped(model)
    container = container_of(model)
    found = {} if container is None else members(container)
    return {name: adapter for name, adapter in found.items() if isinstance(adapter, GPartAdapter)}


def find_adapters(root: nn.Module) -> list[tuple[str, GPartAdapter]]:
    """Every adapter in a module, with the plain path of the module that it was attached to."""
    modules = named_modules(root)
    paths = {id(module): path for path, module in modules}
    adapters = [module.adapter for _, module in modules if isinstance(module, Theta)]
    return [(paths[id(adapter.model)], adapter) for adapter in adapters if id(adapter.model) in paths]


class GPartAdapter:
    """An attached adapter; made by :func:`attach` and :func:`gpart.load_adapter`.

    Attributes:
        model: the adapted module.
        home: the module whose last child holds theta: the adapted one, or one below it where that is a container.
        home_path: its path in the adapted module.
        config: its settings.
        name: its name.
        plan: the adapted weights in order, the saved and the frozen parameters' names.
        memory: what is kept in memory.
        weights: what the adapted layers read.
        snapshot: the model's state before it was attached.
        hooks: those on the model, while it is active.
        about: what its files say of base, task, labels, inputs and score; at first what the model says of itself.
    """

    about: About = About()
    source: str | None = None
    """Where its numbers were loaded from last, by :func:`gpart.load_adapter`."""

    restored: bool = False
    """Whether its module was loaded with it, by :func:`gpart.callbacks.load_from_checkpoint`: its numbers are a run's."""

    renaming: RemovableHandle | None = None
    """Lets the model load theta from where it stood before 0.2."""

    def __init__(
        self,
        model: nn.Module,
        config: GPartConfig,
        name: str,
        plan: Plan,
        memory: MemoryPolicy,
        home: str,
        snapshot: Snapshot,
    ) -> None:
        self.model, self.config, self.name, self.plan, self.memory = model, config, name, plan, memory
        self.home, self.home_path = get_submodule(model, home), home
        self.weights = Weights(self.home, name, plan, config, memory)
        self.snapshot = snapshot
        self.hooks: list[RemovableHandle] = []
        self._samples: dict[str, Sample] = {}  # of W0, where it is not whole later

    @property
    def theta(self) -> nn.Parameter:
        """The one trainable vector, shape (d,), float32 or wider."""
        return self._holder().theta

    @property
    def values(self) -> Tensor:
        """Theta as a plain tensor, shape (d,): theta itself, but where a sharding strategy has made a DTensor of it."""
        return self._holder().values()

    @property
    def sharded(self) -> bool:
        """Whether the base weights are whole only while their layers run."""
        return self.weights.sharded

    @sharded.setter
    def sharded(self, sharded: bool) -> None:
        self.weights.sharded = sharded

    @property
    def size(self) -> int:
        """D, the number of adapted weights."""
        return self.plan.size

    @property
    def theta_name(self) -> str:
        """Theta's key in the model's state_dict."""
        return f"{self.home_path}.{theta_key(self.name)}" if self.home_path else theta_key(self.name)

    @property
    def attached(self) -> bool:
        """Whether it is on its model still: not taken off by :meth:`detach` or :meth:`merge_and_unload`."""
        return self._held() is not None

    @property
    def merged(self) -> bool:
        """Whether W0 + P·theta stands in the stored weights."""
        return self.weights.bases is not None and self.active

    @property
    def active(self) -> bool:
        """Whether its update is in the weights, and its head in the model; see :func:`set_active`."""
        container = self.home._modules.get(CONTAINER)
        return isinstance(container, Adapters) and self._held() is not None and self.name in container.active_factors

    def _held(self) -> Theta | None:
        container = self.home._modules.get(CONTAINER)
        holder = container._modules.get(self.name) if isinstance(container, Adapters) else None
        return holder if isinstance(holder, Theta) and holder.adapter is self else None

    def _holder(self) -> Theta:
        if (holder := self._held()) is None:
            raise GPartError(
                f"adapter {self.name!r} is not attached any more; the model carries {get_adapters(self.model)}"
            )
        return holder

    def delta(self, name: str) -> Tensor:
        """P·theta for one adapted parameter (zeros outside its slices), in its shape, in theta's dtype.

        Args:
            name: as in ``model.named_parameters()`` before attach.

        Raises:
            GPartError: if no adapted parameter has this name.
        """
        weight = next((weight for weight in self.plan.weights if weight.name == name), None)
        if weight is None:
            raise GPartError(f"{name!r} is not adapted; adapted are {[weight.name for weight in self.plan.weights]}")
        device = get_parameter(self.model, name).device
        out = torch.zeros(weight.shape, dtype=self.theta.dtype, device=device)
        scaled = self.weights.scaled(self.values, device)
        for block in self.weights.blocks(weight, device):
            target = block.of(out)
            target.copy_(delta_block(scaled, block, target.shape))
        return out

    def merge(self) -> None:
        """Writes what the model computes with, rounded once, into the stored weights. Twice is once.

        That is W0 + P·theta, or the sum of all active adapters. W0 is kept for :meth:`unmerge`.

        Raises:
            GPartError: if the adapter is not active, a weight is packed, and so cannot hold the sum, the base weights are
                sharded, or theta is not finite.
        """
        container = self._container()
        if not self.active:
            raise GPartError(
                f"adapter {self.name!r} is not active, and cannot be merged; active are {list(container.active_factors)}"
            )
        merge(container)
        self.free()

    @torch.no_grad()
    def merged_weights(self, theta: Tensor | None = None) -> dict[str, Tensor]:
        """The adapted parameters by name as :meth:`merge` would store them, which this leaves alone.

        Args:
            theta: another than the adapter's, such as an average of it.
        """
        bases, values = self.base_parameters(), self.values if theta is None else theta
        with self.weights.scope.held():
            return {weight.name: self._sum(weight, bases[weight.name], values) for weight in self.plan.weights}

    def _sum(self, weight: AdaptedWeight, base: Tensor, theta: Tensor) -> Tensor:
        """W0 + P·theta of one parameter, rounded once."""
        blocks = self.weights.blocks(weight, base.device)
        return expand(self.weights.scaled(theta.to(base.device), base.device), base, blocks)

    def unmerge(self) -> None:
        """Puts the stored weights back to W0, bit for bit; of all adapters that were merged."""
        unmerge(self._container())

    @contextmanager
    def cached(self) -> Iterator[None]:
        """Within it W0 + P·theta is computed once, not at every forward pass; for evaluation and generation.

        It holds where no gradient is wanted and no dropout is drawn, for one copy of the adapted weights in memory,
        which goes at the end unless ``weights`` keeps them. What was computed is used as long as theta and W0 are not
        written to and get no other ``.data`` (``vector_to_parameters`` gives them one). Writing through ``.data`` into the
        memory that is there, as ``theta.data.add_(1)`` does, is not seen until the end.
        """
        try:
            with self.weights.cache:
                yield
        finally:
            stored = get_parameter(self.model, self.plan.weights[0].name)
            if not self.weights.cache.open and (self.weights.total or self.weights.mode(stored) != "kept"):
                self.free()

    def free(self) -> None:
        """Gives back the memory of kept W0 + P·theta; what is needed later is computed again."""
        self.weights.free()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model runs without the update, on W0; the saved modules stay as trained.

        Of several active adapters the others' updates stay in the weights; ``set_active(model, [])`` takes out all.
        """
        self.weights.disabled += 1
        try:
            yield
        finally:
            self.weights.disabled -= 1

    @contextmanager
    def batch(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within it each row of what the model is given belongs to an adapter of its own.

        Each adapted layer then has a product for each adapter, with the weight and head of that one, on its rows; a row's
        output is what its adapter alone gives it. ``cached()`` of the adapters spares computing their weights at every
        forward pass, for a copy of the adapted weights each.

        Args:
            names: an adapter's name for each row, of any adapter of the model, active or not; None or ``"__base__"`` for
                the base.

        Raises:
            GPartError: if a name is not there, another batch is open, the model is in training mode, merged or sharded, or
                a layer does not take its batch along the first dimension.
        """
        with batch(self._container(), [BASE if name is None else name for name in names]):
            yield

    def detach(self) -> nn.Module:
        """Takes the adapter off.

        Off the last one the model is as it was before attach, with the bits that its heads and buffers had then. Others stay
        as they are, active or not.

        Returns:
            The model.

        Raises:
            GPartError: if it was taken off already, the base weights are sharded, two of the others have the same saved
                module and none was chosen, or something has changed a layer since. The model is then as it was.
        """
        self._holder()  # raises where it was taken off already
        if self.sharded:
            raise GPartError(f"adapter {self.name!r} is sharded: load its file into a whole model, and detach there")
        container, active = self._container(), self.active
        factors = {name: factor for name, factor in container.active_factors.items() if name != self.name}
        heads = None if container.heads == self.name else container.heads
        check_switch(container, factors, heads, leaving=self)
        self.unmerge()
        if len(members(container)) > 1:
            switch(container, factors, heads, leaving=self)
            self._take_off()
            return self.model
        self._release()
        self._take_off()
        if active:
            self.snapshot.restore(self.model)
        self.snapshot.restore_flags(self.model)
        return self.model

    def merge_and_unload(self) -> nn.Module:
        """Takes all adapters off, and leaves in the weights what the model computes with, and the heads as trained.

        Returns:
            The model, a plain one; the name is PEFT's.

        Raises:
            GPartError: as :meth:`merge`, or if something has changed the class of an adapted layer since; nothing is
                changed then.
        """
        every = [member for member in members(self._container()).values() if isinstance(member, GPartAdapter)]
        check_wirable(self.model, dict.fromkeys(place for member in every for place in member.plan.places))
        self.merge()
        for member in every:
            member._release()
        for member in every:
            member._take_off()
            member.weights.bases = None  # the last step: until then unmerge() gives W0 back
        self.snapshot.restore_flags(self.model)
        return self.model

    def base_parameters(self) -> dict[str, Tensor]:
        """Every parameter that this adapter freezes by its name before attach, with the base's values.

        That is W0 also while merged, and the base's first head where one of another adapter stands.
        """
        values = {name: self._parameter(name) for name in self.plan.frozen}
        container = self.home._modules.get(CONTAINER) if self._held() is not None else None
        others = first_values(container if isinstance(container, Adapters) else None, self.name)
        replaced = {**(self.weights.bases or {}), **others}  # a merge keeps what stood there: another adapter's head
        return {name: replaced.get(name, value) for name, value in values.items()}

    def num_parameters(self) -> int:
        """How many numbers the adapter has: d, and those of its saved modules."""
        return self.config.d + sum(value.numel() for value in self.saved_parameters().values())

    def print_trainable_parameters(self) -> None:
        """Prints how many of the model's parameters require a gradient, in PEFT's words."""
        values = list(self.model.parameters())
        trained, every = (
            sum(value.numel() for value in some)
            for some in ([value for value in values if value.requires_grad], values)
        )
        print(f"trainable params: {trained:,d} || all params: {every:,d} || trainable%: {100 * trained / every:.4f}")  # noqa: T201  # its purpose

    def base_fingerprint(self) -> str:
        """The fingerprint of the frozen parameters (:mod:`gpart.injection.fingerprint`); of sharded ones from memory."""
        return fingerprint(self._base_values())

    def _base_values(self) -> Mapping[str, Tensor | Sample]:
        return self._samples if self.sharded and self._samples else self.base_parameters()

    def base_samples(self) -> dict[str, Tensor | Sample]:
        """Every frozen parameter, or what is remembered of it where this process has only a flat part."""
        values = self.base_parameters()
        return {
            name: value
            if name not in self._samples or self._samples[name].shape == value.shape
            else self._samples[name]
            for name, value in values.items()
        }

    @property
    def remembers_base(self) -> bool:
        """Whether :meth:`remember_base` was called."""
        return bool(self._samples)

    def remember_base(self) -> None:
        """Takes what the fingerprint needs, for the time when not every process that asks can gather it."""
        self._samples = {name: sample_of(name, value) for name, value in self.base_parameters().items()}

    def saved_parameters(self) -> dict[str, Tensor]:
        """The adapter's own parameters of ``modules_to_save`` by name, wherever they stand."""
        laid = {} if (holder := self._held()) is None else laid_by(holder)
        return {name: laid[name] if name in laid else self._parameter(name) for name in self.plan.saved}

    def _parameter(self, name: str) -> Tensor:
        try:
            return get_parameter(self.model, name)
        except AttributeError as error:
            raise GPartError(
                f"{type(self.model).__name__} has no {name!r} any more, which it had when adapter {self.name!r} was"
                " attached"
            ) from error

    def changed_buffers(self) -> dict[str, Tensor]:
        """The persistent buffers whose values differ from those at attach (BatchNorm's statistics), by name."""
        holder = self._held()
        if holder is None or self.active:
            return self.snapshot.changed_buffers(self.model)
        return {name: value for name, value in laid_by(holder).items() if name not in self.plan.saved}

    def put_buffers(self, values: Mapping[str, Tensor]) -> None:
        """Gives the adapter these values of buffers, by name; they stand in the model while it is active.

        Of the others that it had changed it gets the base's again.
        """
        if self.active:
            first = {name: self.snapshot.first(name) for name in self.snapshot.moved_buffers(self.model)}
            put_buffers(self.model, {**first, **values})
            return
        drop_buffers(self._holder())
        for name, value in values.items():
            put_buffer(self._holder(), name, value.to(named_buffers(self.model)[name]))

    def manifest(self) -> Manifest:
        """What the adapter belongs to: its config, the adapted weights, the base's fingerprint, the versions.

        Raises:
            GPartError: if a parameter outside ``modules_to_save`` is trained, since theta alone would not give it back.
        """
        trained = [name for name, value in self.base_parameters().items() if value.requires_grad]
        if trained:
            raise GPartError(
                f"{trained[:5]} require a gradient but are not in modules_to_save={self.config.modules_to_save!r}:"
                " freeze them again, or name their modules there"
            )
        version, base = WITH_PADDING_ROWS if self.plan.padding_rows else FORMAT, self._base_values()
        return Manifest(
            name=self.name,
            config=self.config,
            size=self.size,
            weights=self.plan.described(),
            base=fingerprint(base, version),
            parts="" if version == 1 else shortened(parts(base)),
            versions=written_by(),
            format=version,
            about=self.about,
        )

    def save(self, folder: str | PathLike[str], write: bool = True) -> None:
        """Writes the adapter folder; while merged, theta and the base's fingerprint are stored all the same.

        Args:
            folder: a path, or a URL that fsspec knows (``s3://...``); is made where it is missing.
            write: False where another rank writes, and this one only takes part in gathering what is sharded.

        Raises:
            GPartError: if theta or a saved parameter is not finite, or a parameter outside ``modules_to_save`` is trained.
        """
        own = {theta_key(self.name): self.values, **self.saved_parameters()}
        gathered = {name: whole(value.detach()) for name, value in {**own, **self.changed_buffers()}.items()}
        check_finite({name: gathered[name] for name in own}, "the adapter")
        if write:
            write_folder(folder, self.manifest(), gathered)

    def _container(self) -> Adapters:
        self._holder()  # raises where it was taken off already
        container = self.home._modules[CONTAINER]
        if not isinstance(container, Adapters):
            raise RuntimeError(f"{CONTAINER} of {type(self.home).__name__} is no module of adapters")
        check_no_batch(container)  # what asks for it changes the model
        return container

    def _release(self) -> None:
        """Gives every layer its class back."""
        wire(self.model, dict.fromkeys(self.plan.places))

    def _take_off(self) -> None:
        remove_hooks(self.hooks)
        if self.renaming is not None:
            self.renaming.remove()
        remove(self.model, self.name, self.home)

    def __repr__(self) -> str:
        """Shows what there is to train and to adapt."""
        return f"GPartAdapter({self.name!r}, d={self.config.d}, D={self.size}, weights={len(self.plan.weights)})"
