"""GPart for any Lightning project, by one line: :class:`GPartCallback`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from gpart.adapter import GPartAdapter, attach, get_adapters
from gpart.adapters import active_adapters, add_active, chosen_heads, set_active
from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.callbacks.checkpoints.filling import Contents
from gpart.callbacks.copies import adapt_copies, keep_frozen, merge_copies, unnamed_copies
from gpart.callbacks.guards.finite import FiniteTheta
from gpart.callbacks.guards.learning import FirstGradient, warn_of_lost_updates
from gpart.callbacks.guards.refusals import refuse_merging
from gpart.callbacks.guards.together import refuse_together
from gpart.callbacks.logged import log_settings
from gpart.callbacks.marks import place_of
from gpart.callbacks.method import MethodCallback
from gpart.callbacks.networks import find_attached
from gpart.callbacks.optimizers import group_of
from gpart.callbacks.saving import Save, save_adapter
from gpart.callbacks.sharding.strategies import (
    after_sharding,
    before_sharding,
    check_reduced,
    refuse_sharded,
    remember_base,
    shards,
)
from gpart.callbacks.told import about_run, agree_on_labels
from gpart.config import Bias, GPartConfig, IndicesSetting, MemoryPolicy, Projection, SavedModules, WeightsSetting
from gpart.errors import GPartError
from gpart.injection.homes import check_elements
from gpart.injection.matching import with_own_names
from gpart.injection.names import get_parameter, named_modules
from gpart.injection.targets import plan
from gpart.loading import load_adapter, unlike
from gpart.materialize.merging import check_mergeable
from gpart.serialization.sources import read_adapter


class GPartCallback(MethodCallback):
    """Trains W0 + P·theta instead of the weights of a LightningModule that knows nothing of it.

    It freezes the adapted module but for ``modules_to_save``, adds theta (d numbers), and makes checkpoints hold theta
    and the saved modules only. The module's ``configure_optimizers`` stays as it is: theta is among
    ``self.parameters()`` and the adapted module's parameters.

    With a logger it logs ``gpart/theta_norm``, ‖theta‖ = ‖W - W0‖, and ``gpart/lr``, the learning rate of theta; among the
    hyperparameters stand its settings, as ``gpart/d``, ``gpart/seed``, ``gpart/target_modules``.

    Args:
        d: number of groups, the length of theta.
        target_modules: which layers to adapt: names or name endings, a regular expression, ``"all-linear"``, or
            ``"query-value"``, which finds the query and value projections by their usual names.
        modules_to_save: modules that are trained and stored in full, the head: a list of names or name endings, or
            ``"head"``, which finds it by the network's class.
        seed: what the groups come from.
        exclude_modules: layers to leave out.
        slices: for fused weights, which output features to adapt, as ``{"qkv": [[0, 768], [1536, 2304]]}``.
        bias: ``"all"``: the adapted layers' biases are adapted too.
        dropout: on P·theta, in training.
        isometric: False for the ablation without 1/sqrt(n_j).
        name: the adapter's name, part of theta's key; default that in ``adapter``, or ``"default"``.
        module: the submodule to adapt; default the only child with parameters, or the whole.
        copies: paths of copies of that submodule, momentum teachers as in BYOL or DINO: they get the same groups and a
            theta of their own, which follows by the project's own average over ``zip`` of both networks' parameters.
        adapter: an adapter folder or ``.ckpt`` to start from (``FILE.ckpt:NAME`` of several); its settings hold, and those
            given must agree.
        check_base: False loads ``adapter`` onto another base of the same shape, with a warning.
        save_folder: where the adapter folder is written when fit ends.
        save: what it holds: ``"best"``, the numbers of the best checkpoint by a ModelCheckpoint's monitor, or ``"last"``;
            default the best where there is a monitor. The model itself stays as the last step left it.
        indices: the group indices: ``"stored"`` (two bytes for each adapted weight, four above d = 32,768),
            ``"computed"`` (time instead), or ``"auto"``, by the size of the memory.
        checkpoints: ``"adapter"`` (theta, the saved modules and the buffers), or ``"merged"``: W0 + P·theta in the place of the
            weights, which any reader of Lightning takes for a plain module's; fit resumes from either.
        merge_at_end: at the end of fit, merges theta into the weights and takes the adapter off: a plain module is left.
        weights: W0 + P·theta: ``"kept"`` (computed once per optimizer step), ``"forward"`` (at each forward pass),
            ``"recomputed"`` (in the backward pass again, the least memory), or ``"auto"``. Neither changes a result.
        target_parameters: parameters that are no layer's ``weight``, by names or name endings or a regular expression:
            the experts of a mixture (``["experts.gate_up_proj"]``), an LSTM's weights (``["weight_ih_l0"]``).
        projection: the map from theta to the update: ``"partition"``, ``"hash"``, ``"fastfood"``, or a map of the paper's
            own code, ``"authors-stateless"`` or ``"authors-materialized"``.

    Raises:
        GPartError: if the settings are invalid, or neither ``d`` and what to adapt nor ``adapter`` are given.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[GPartCallback(d=1000, target_modules=["query", "value"], modules_to_save=["classifier"])],
        ...     logger=False, enable_checkpointing=False, accelerator="cpu",
        ... )
    """

    def __init__(
        self,
        d: int | None = None,
        target_modules: list[str] | str | None = None,
        modules_to_save: SavedModules | None = None,
        seed: int = 0,
        exclude_modules: list[str] | str | None = None,
        slices: dict[str, list[list[int]]] | None = None,
        bias: Bias = "none",
        dropout: float = 0.0,
        isometric: bool = True,
        name: str | None = None,
        module: str | None = None,
        adapter: str | None = None,
        check_base: bool = True,
        save_folder: str | None = None,
        indices: IndicesSetting = "auto",
        weights: WeightsSetting = "auto",
        target_parameters: list[str] | str | None = None,
        checkpoints: Literal["adapter", "merged"] = "adapter",
        merge_at_end: bool = False,
        copies: list[str] | None = None,
        projection: Projection = "partition",
        save: Save | None = None,
    ) -> None:
        given = dict(locals())  # before any other name is bound
        super().__init__(module, save_folder, save)
        self.memory = MemoryPolicy(indices, weights)
        self.config: GPartConfig | None = None
        self._settings = {
            one.name: given[one.name] for one in fields(GPartConfig) if given[one.name] not in (None, one.default)
        }
        targets = target_modules or target_parameters
        if d is not None and targets:
            self.config = GPartConfig(**{one.name: given[one.name] for one in fields(GPartConfig)})
        elif adapter is None or d is not None or targets:
            raise GPartError(
                f"d and target_modules (or target_parameters) go together, or an adapter folder has them: got d={d},"
                f" target_modules={target_modules!r}, adapter={adapter!r}, target_parameters={target_parameters!r}"
            )
        self._given_name, self.start, self.check_base = name, adapter, check_base
        self.copies = tuple(copies or ())
        if checkpoints not in ("adapter", "merged"):
            raise GPartError(f"checkpoints must be 'adapter' or 'merged', got {checkpoints!r}")
        if checkpoints == "merged" and copies:
            raise GPartError(
                f"checkpoints='merged' writes plain weights, and copies={copies} have thetas of their own: write adapters"
            )
        self.checkpoints, self.merge_at_end = checkpoints, merge_at_end
        self._adapter: GPartAdapter | None = None
        self._copies: list[GPartAdapter] = []
        self._gradient, self._finite = FirstGradient(), FiniteTheta()
        self._evaluation = ExitStack()
        self._sharding, self._rate = False, 0.0
        self._fit_ended = self._just_read = False
        self._labels: list[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the evaluation that is going on, which a copy is no part of."""
        return {**self.__dict__, "_evaluation": ExitStack()}

    @cached_property
    def name(self) -> str:
        """The adapter's name: the given one, that of the adapter to start from, or ``"default"``.

        Raises:
            GPartFileError: if there is no such adapter to start from.
            GPartError: if it is damaged.
        """
        if self._given_name is not None:
            return self._given_name
        return super().name if self.start is None else read_adapter(self.start)[0].name

    @property
    def adapter(self) -> GPartAdapter:
        """The adapter, once the network is built.

        Raises:
            GPartError: before.
        """
        if self._adapter is None:
            raise GPartError("there is no adapter yet: the trainer attaches it when it sets up the network")
        return self._adapter

    @property
    def _prefix(self) -> str:
        """Of what is logged."""
        return "gpart" if self.name == "default" else f"gpart/{self.name}"

    def apply(self, network: nn.Module) -> Contents:
        """Attaches the adapter, or adopts the one that is there with an equal config."""
        config = None if self.config is None else with_own_names(self.config, network)
        attached = get_adapters(network).get(self.name)
        adopted = attached is not None and attached is not self._adapter
        different = unlike(attached, attached.config, config) if attached and adopted and config else []
        if different:
            raise GPartError(
                f"the network carries an adapter {self.name!r} with other settings than this callback's:"
                f" {'; '.join(different)}"
            )
        before, heads, new = active_adapters(network), chosen_heads(network), attached is None
        frozen = self._frozen_others(network, before)
        if attached is None and self._merged_into(network):  # what was loaded is a part of the base by now
            config = self.adapter.config
        elif self.start is not None and self._reads(attached):
            attached = self._load(network, self.start, config, before, heads)
        if attached is None:
            if config is None:
                raise RuntimeError("no settings and no adapter folder, which __init__ refuses")
            if self._sharding:
                refuse_sharded(network)
            attached = attach(network, config, self.name, self.memory.indices, self.memory.weights)
        dropout = self._settings.get("dropout") if config is None else config.dropout
        if dropout is not None:  # it is a run's own
            attached.config = attached.weights.config = replace(attached.config, dropout=dropout)
        if before and not (attached.active and attached.name in before):
            self._beside(network, attached, before, heads, new)
        elif not attached.active:
            set_active(network, attached.name)
        for value in frozen:
            value.requires_grad_(False)
        if self.start is not None and adopted:
            self._labels = attached.about.labels
        self._adapter = attached
        if self._sharding:
            before_sharding(attached)
        self.modules_to_save = attached.config.modules_to_save
        return AdapterContents(attached, whole=self.checkpoints == "merged", copies=self.copies)

    def _reads(self, attached: GPartAdapter | None) -> bool:
        """Whether the numbers of the adapter to start from are read: once for each network, since it is trained from then on.

        Lightning asks for a module's own callbacks at each stage, and a copy or a new trainer has others too: what says
        that a network has started is its adapter.
        """
        if attached is None or (self._just_read and not self._sharding):
            return True  # again where the module's own hook, such as configure_model, may have written since
        started = (
            attached.source is not None and self.start is not None and place_of(attached.source) == place_of(self.start)
        )
        if attached is self._adapter or started:
            return False
        if attached.restored:
            rank_zero_warn(
                f"adapter {self.name!r} came with the checkpoint that the module was loaded from, and keeps its numbers:"
                f" {self.start} is not read. To start from there, detach() it first"
            )
        return not attached.restored

    def _merged_into(self, network: nn.Module) -> bool:
        """Whether an earlier fit has merged this callback's adapter into the network."""
        taken_off = self._adapter is not None and not self._adapter.attached and self._adapter.model is network
        return self.merge_at_end and taken_off  # after detach() the base is what it was

    def _frozen_others(self, network: nn.Module, before: Collection[str]) -> list[Tensor]:
        """What of other active adapters the user has frozen, which a switch would train."""
        others = [one for name, one in get_adapters(network).items() if name in before and name != self.name]
        values = [value for one in others for value in (one.theta, *one.saved_parameters().values())]
        return [value for value in values if not value.requires_grad]

    @contextmanager
    def plain_network(self, network: nn.Module) -> Iterator[nn.Module]:
        """Within it, W0 + P·theta stands in the stored weights, of all active adapters; then W0 again, bit for bit."""
        adapter = self._adapter
        merged = adapter if adapter is not None and adapter.active and not adapter.merged else None
        if merged is not None:
            merged.merge()
        try:
            yield network
        finally:
            if merged is not None:
                merged.unmerge()

    @staticmethod
    def _beside(
        network: nn.Module, attached: GPartAdapter, before: dict[str, float], heads: str | None, new: bool
    ) -> None:
        """Makes the adapter active beside those that were; takes it off again where it may not be."""
        try:
            add_active(network, attached.name, before, heads)
        except GPartError:
            if new:
                attached.detach()
            set_active(network, list(before), list(before.values()), heads)
            raise

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Does so only where the checkpoint is not a plain model's, which is read without this callback."""
        if self.checkpoints != "merged":
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def planned(self, network: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
        """The adapted weights, and the saved modules' parameters; none where a folder or an adapter says which."""
        if self.config is None or get_adapters(network):
            return (), ()
        made = plan(network, with_own_names(self.config, network))
        return [weight.name for weight in made.weights], made.saved

    def places(
        self, frozen: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]
    ) -> tuple[Sequence[nn.Parameter], Sequence[Tensor]]:
        """Theta stands in for what it adapts; what another adapter's theta will stand in for stays until then."""
        network = self.adapter.model
        waiting = [
            weight.name
            for one in get_adapters(network).values()
            if one is not self.adapter and one.theta.requires_grad and group_of(one.theta, optimizers) is None
            for weight in one.plan.weights
        ]
        stay = {id(get_parameter(network, name)) for name in waiting}
        own = [get_parameter(network, weight.name) for weight in self.adapter.plan.weights]
        return [one for one in frozen if id(one) not in stay], own

    def check_others(self, others: list[MethodCallback], trainer: Trainer) -> None:
        """Several adapters may be trained at once, of one network or of several, each by a callback with a name of its own.

        Raises:
            GPartError: if two have one name, one's network is inside the other's, or the strategy shards the model.
        """
        for other in others:
            if not isinstance(other, GPartCallback):
                super().check_others(others, trainer)
            else:
                refuse_together(self, other, trainer.strategy)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attaches the adapter now, or as soon as the network is built; in any case before it is sharded."""
        self._sharding, self._fit_ended, self._just_read = shards(trainer.strategy), False, False
        if self.merge_at_end or self.checkpoints == "merged":
            refuse_merging(trainer.strategy, self.merge_at_end)
        if self._taken_off(pl_module):
            if stage != "fit":
                return  # what was merged is evaluated as the plain module that it is
            if self.merge_at_end and self.save_folder is not None:
                raise GPartError(
                    f"{self.save_folder} holds the adapter that an earlier fit has merged into {type(pl_module).__name__}. This"
                    " fit would replace it by one whose base is that merged module, which is on no disk: give another"
                    " save_folder, or none"
                )
        super().setup(trainer, pl_module, stage)
        original = pl_module.configure_optimizers

        def configure_optimizers() -> Any:
            if self._adapter is None:
                return original()
            with self._adapter.disabled():  # ``layer.weight`` is the parameter itself, as groups are made of
                return original()

        self._replace(pl_module, "configure_optimizers", configure_optimizers)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within it ``layer.weight`` is the parameter itself, so that what a project initialises or loads in place is written.

        Only where theta is 0, so that every number that is read is the same.
        """
        adapter = self._adapter
        theta = adapter.values.detach() if adapter is not None and adapter.attached else None
        at_start = theta is not None and not theta.is_meta and not bool(theta.any())
        with adapter.disabled() if adapter is not None and at_start else nullcontext():
            yield

    def _taken_off(self, pl_module: LightningModule) -> bool:
        adapter = self._adapter
        if adapter is None or adapter.attached:
            return False
        return any(module is adapter.model for _, module in named_modules(pl_module))

    def shard(self, trainer: Trainer) -> None:
        """Theta stays whole on every rank."""
        after_sharding(self.adapter, trainer.strategy)

    def _applied_to(self, pl_module: LightningModule) -> tuple[str, nn.Module] | None:
        """Also where an adapter of this name was attached before the trainer came."""
        if found := super()._applied_to(pl_module):
            return found
        return None if self.module is not None else find_attached(pl_module, self.name, self.config, self.copies)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super()._apply(trainer, pl_module)
        self._copies = adapt_copies(self.adapter, pl_module, self.copies)

    def _load(
        self,
        network: nn.Module,
        folder: str,
        config: GPartConfig | None,
        before: dict[str, float],
        heads: str | None,
    ) -> GPartAdapter:
        there = list(get_adapters(network))
        adapter = load_adapter(
            network, folder, self.check_base, self.memory.indices, self.memory.weights, self._given_name
        )
        try:
            wanted = replace(adapter.config, **self._settings) if config is None else config
            different = unlike(adapter, adapter.config, with_own_names(wanted, network))
        except GPartError as error:  # a setting that is none
            different = [str(error)]
        if different and adapter.name not in there:
            adapter.detach()
            if there:
                set_active(network, list(before), list(before.values()), heads)
        if different:
            raise GPartError(
                f"{folder} and this callback have different settings: {'; '.join(different)}. Leave them to the adapter: no d,"
                " no target_modules and no modules_to_save; over a recipe's by --method.d null --method.target_modules null"
                " --method.modules_to_save null"
            )
        self._labels, self._just_read = adapter.about.labels, True
        return adapter

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that theta will be trained; prints the table.

        Raises:
            GPartError: if no optimizer holds theta.
        """
        super().on_fit_start(trainer, pl_module)
        self._name_classes(trainer, pl_module)
        self.adapter.about = about_run(trainer, pl_module, self.adapter.about)
        self._gradient, self._finite = FirstGradient(), FiniteTheta()
        if self.merge_at_end or self.checkpoints == "merged":
            check_mergeable(self.adapter)
        if self.checkpoints == "merged" and len(names := list(get_adapters(self.adapter.model))) > 1:
            raise GPartError(f"checkpoints='merged' holds one adapter's W0 + P·theta, and the model carries {names}")
        check_reduced(trainer.strategy, pl_module)
        check_elements(pl_module)
        if self.adapter.merged:
            raise GPartError(f"adapter {self.name!r} is merged: unmerge() before fit, theta has no gradient")
        for unnamed in unnamed_copies(pl_module, self._path, self.adapter, self.copies):
            rank_zero_warn(unnamed)
        group = group_of(self.adapter.theta, trainer.optimizers)
        if group is None:
            self.check_flags()  # where theta is frozen, that is the reason
            raise GPartError(
                f"theta, {self.adapter.theta_name} of {type(self.adapter.model).__name__}, is in no optimizer, and"
                " neither is a weight that it adapts: make them from self.parameters() or the adapted module's parameters();"
                " or adapt the submodule whose parameters are used, by module=..."
            )
        warn_of_lost_updates(self.adapter, float(group["lr"]))
        settings = asdict(self.adapter.config)
        log_settings(trainer, pl_module, {f"{self._prefix}/{key}": value for key, value in settings.items()})
        self._run_untouched(pl_module, "on_fit_start")  # the module's own, which comes next

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the frozen weights, which every save compares with what they are then; gives the module its own hook back.

        Where the base is sharded, takes its fingerprint together with all ranks: one alone writes checkpoints.
        """
        self._take_back()
        remember_base(self.adapter, trainer.strategy)
        if isinstance(self._contents, AdapterContents):
            self._contents.remember_bits()
            self._contents.check_loaded()

    def summary(self, trainer: Trainer) -> dict[str, str]:
        """Adapted weights, D, d."""
        adapter = self.adapter
        return {
            "adapted weights": f"{len(adapter.plan.weights):,}",
            "D, their size": f"{adapter.size:,}",
            "d, length of theta": f"{adapter.config.d:,}",
            "weights per group": f"{adapter.size / adapter.config.d:,.1f}",
        }

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on theta must have a gradient when its optimizer steps: a step may come without a backward before it."""
        self._gradient.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """At the first step of theta's optimizer after a backward, checks that theta has a gradient.

        Raises:
            GPartError: if it has none.
        """
        if (group := group_of(self.adapter.theta, [optimizer])) is not None:
            self._rate = float(group["lr"])  # before a schedule goes on
            self._gradient.before_step(self.adapter, group)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Gives copies the bits of the frozen weights again; checks, before each epoch, that they are still frozen.

        Raises:
            GPartError: if they are not.
        """
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        keep_frozen(self.adapter, self._copies)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks that theta is finite, before anything saves it; logs ‖theta‖ and theta's learning rate.

        Raises:
            GPartError: if it is not.
        """
        self._finite.look(self.adapter.values, trainer.global_step, self._rate)
        group = group_of(self.adapter.theta, trainer.optimizers) if trainer.loggers else None
        if group is None:
            return
        norm = self.adapter.values.detach().norm()
        rate = torch.tensor(float(group["lr"]))  # Lightning would put a number on the device, and wait for it each step
        pl_module.log_dict(
            {f"{self._prefix}/theta_norm": norm, f"{self._prefix}/lr": rate}, on_step=True, on_epoch=False
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks theta as the last step left it.

        Raises:
            GPartError: if it is not finite.
        """
        super().on_train_end(trainer, pl_module)
        keep_frozen(self.adapter, self._copies)
        self._finite.settle(self.adapter.values)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the folder, if one was asked for; remembers that fit came to its end, so that theta may be merged."""
        super().on_fit_end(trainer, pl_module)
        self._fit_ended = True

    def _name_classes(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.start is not None:
            agree_on_labels(trainer, pl_module, self._labels, self.start)

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._name_classes(trainer, pl_module)
        keep_frozen(self.adapter, self._copies)
        if isinstance(self._contents, AdapterContents) and self._contents.attached:
            self._contents.check_loaded()
        # theta stays as it is until the loop's end, so that W0 + P·theta need not be computed at every batch or token.
        if self.adapter.attached:
            self._evaluation.enter_context(self.adapter.cached())

    def _end_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation.close()

    on_validation_start = on_test_start = on_predict_start = _start_evaluation
    on_validation_end = on_test_end = on_predict_end = _end_evaluation

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of what an evaluation has kept; called after an exception too."""
        self._evaluation.close()
        if self._adapter is not None:
            self._adapter.free()
        super().teardown(trainer, pl_module, stage)
        # Lightning calls this with stage "fit" also when the tuner leaves a fit early, to go back to the start.
        if stage == "fit" and self._fit_ended and self.merge_at_end and self.adapter.attached:
            self.adapter.merge_and_unload()
            merge_copies(self._copies)

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: str) -> None:
        """Writes the adapter folder."""
        if isinstance(self._contents, AdapterContents):
            self._contents.check_bits()
        save_adapter(trainer, self.adapter, folder, self.save)
