"""When a method is applied to a LightningModule, whatever the method.

Invariant: the network is changed once, as soon as it exists and before its optimizers are made, and the module's own
code runs exactly as it would without the callback.

Lightning runs ``Callback.setup`` before ``LightningModule.setup`` and before ``configure_model``. Where the network
exists by then, it is adapted at once, so that callbacks that copy the model copy the adapted one. Else this instance's
``configure_model`` is wrapped: Lightning calls it once, after the module's setup, in its own contexts, before a
checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from gpart.callbacks.checkpoints.filling import Contents
from gpart.callbacks.checkpoints.plugin import GPartCheckpointIO
from gpart.callbacks.checkpoints.random_states import install_random_states
from gpart.callbacks.guards.averages import COPYING, check_copies, keep_frozen, refuse_empty_copies
from gpart.callbacks.guards.flags import Flags, refuse_unfrozen
from gpart.callbacks.guards.refusals import check_callbacks, check_strategy, refuse_pruning, strategy_name
from gpart.callbacks.networks import find_network, refuse_frozen_beside, tell_frozen, tell_frozen_children
from gpart.callbacks.optimizers import put_in_place
from gpart.callbacks.packages import OfBoth, is_a, is_overridden
from gpart.callbacks.saving import Save, check_keeper, check_save
from gpart.callbacks.sharding.strategies import prepare, shards
from gpart.callbacks.table import print_table
from gpart.config import SavedModules
from gpart.errors import GPartError
from gpart.injection.forgotten import randomly_initialised, refuse_resized
from gpart.injection.matching import saved_parameters
from gpart.injection.modules import Adapters
from gpart.injection.names import named_modules, named_parameters
from gpart.serialization.folder import holds_adapter


class MethodCallback(OfBoth, Callback):
    """Applies a fine-tuning method to any LightningModule; the methods are its subclasses.

    A subclass implements :meth:`apply`. This class finds the moment, installs the checkpoint plugin, prints the table
    at the start of fit, and checks that what the method trains is trained.

    Args:
        module: the submodule to adapt, such as ``"model"``; default the LightningModule's only child with parameters,
            or the LightningModule itself where there are several, where that child is a single layer, or where the
            LightningModule has parameters of its own. What is outside it is left as it was.
        save_folder: where what was trained is written when fit ends.
        save: what that folder holds: ``"best"``, the numbers of the best checkpoint by a ModelCheckpoint's monitor, or
            ``"last"``; default the best where there is a monitor. The model itself stays as the last step left it.

    Raises:
        GPartError: if ``save`` is neither, or there is no folder to hold it.
    """

    modules_to_save: SavedModules | None = None
    """What is trained and stored in full beside the method's own parameters: the head."""

    copies: tuple[str, ...] = ()
    """Paths of copies of the network, which follow it."""

    def __init__(self, module: str | None = None, save_folder: str | None = None, save: Save | None = None) -> None:
        check_save(save, save_folder)
        self.module, self.save_folder, self.save = module, save_folder, save
        self._undo: dict[str, Callable[[], None]] = {}
        self._contents: Contents | None = None
        self._network: nn.Module | None = None
        self._path = ""
        self._known: set[str] = set()
        self._frozen = 0
        self._added: set[str] = set()
        self._flags: Flags | None = None
        self._stepped = False

    @property
    def name(self) -> str:
        """The adapter's, where a trainer may have several."""
        return "default"

    def apply(self, network: nn.Module) -> Contents:
        """Applies the method to the network, or recognises that it is applied already.

        Raises:
            GPartError: if it does not fit; the network is then as it was.
        """
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Applies the method now, or as soon as the network is built.

        Raises:
            GPartError: if the strategy, or another callback, would lose what is trained.
        """
        check_strategy(trainer)
        check_callbacks(self._callbacks(trainer), trainer.strategy)
        sharding = prepare(trainer.strategy)
        methods = [one for one in self._callbacks(trainer) if isinstance(one, MethodCallback)]
        if others := [one for one in methods if one is not self]:
            self.check_others(others, trainer)
        copied_too_early = self._move_first(trainer)
        install_random_states(trainer)
        try:
            self._apply(trainer, pl_module)
        except GPartError:
            if not is_overridden("setup", pl_module) and not is_overridden("configure_model", pl_module):
                raise  # nothing more will be built
            if stage == "fit":
                refuse_empty_copies(self._callbacks(trainer), pl_module)
            self._defer(trainer, pl_module)
            return
        if sharding or is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module):
            self._defer(trainer, pl_module)  # once more, when they have sharded the network, or built it anew
        self._run_untouched(pl_module, "setup")
        for callback in copied_too_early:
            callback.setup(trainer, pl_module, stage)

    @contextmanager
    def plain_network(self, network: nn.Module) -> Iterator[nn.Module]:
        """Within it, what is given has the keys of a network without the method, and all that the method trained.

        It is for what reads a plain model. The network itself is as before at the end.

        Args:
            network: the one that the method was applied to, or one around it.

        Raises:
            GPartError: if the weights cannot hold what was trained.
        """
        yield network

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within it, while nothing is trained yet, the network is the base also for code that writes into its weights."""
        yield

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes into a checkpoint that the method is needed: Lightning names it where a trainer reads it without."""
        # Not by state_dict, of which Lightning takes one for each class.
        checkpoint.get("callbacks", {}).setdefault(self.state_key, {"name": self.name})

    def planned(self, network: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
        """The names of the parameters that :meth:`apply` will adapt, and train in full, whatever their flags are now."""
        return (), ()

    def places(
        self, frozen: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]
    ) -> tuple[Sequence[nn.Parameter], Sequence[Tensor]]:
        """Which of the frozen parameters leave the optimizers, and in whose place the method's own numbers are trained."""
        return frozen, frozen

    def check_others(self, others: list[MethodCallback], trainer: Trainer) -> None:
        """Checks that the trainer's other methods may be there as well.

        Raises:
            GPartError: if not.
        """
        names = [type(one).__name__ for one in (self, *others)]
        raise GPartError(f"a trainer takes one method at a time, got {names}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the module its own methods back."""
        self._take_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As teardown, which Lightning does not call after an exception."""
        self.teardown(trainer, pl_module, "")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the network is what was adapted and can train; prints the table."""
        self._take_back()
        self._stepped = False
        check_keeper(trainer, self.save)
        network = self._network
        if network is None or self._contents is None:
            raise GPartError(f"{type(self).__name__} was not applied: {type(pl_module).__name__} built no network")
        named = named_parameters(network)
        adapters = [module for module in network.modules() if isinstance(module, Adapters)]
        theirs = {id(value) for module in adapters for value in module.parameters()}
        if len(theirs) > 1:
            self._flags = Flags(network)  # the adapters that came later have heads that are trained
        late = [name for name, value in named.items() if name not in self._known and id(value) not in theirs]
        if late:
            raise GPartError(
                f"{late[:5]} were built after {type(self).__name__} was applied; build the network in __init__ or"
                " configure_model, or all of it in setup"
            )
        if self._added and getattr(trainer.strategy, "_start_method", None) == "fork":
            # The parent reads what its children have trained without strictness, see _MultiProcessingLauncher.
            raise GPartError(
                f"{sorted(self._added)[:3]} would be lost: they were added in the forked processes, and the parent has"
                f" nothing of that name. Apply {type(self).__name__} in the parent, before fit, by"
                " gpart.attach(network, config) or this callback's apply(network)"
            )
        refuse_unfrozen(network, self._contents.frozen_keys())
        check_copies(self._callbacks(trainer), pl_module)
        added = {name: named[name] for name in sorted(self._added) if name in named}
        frozen = [value for value in named.values() if not value.requires_grad]
        if said := put_in_place(trainer.optimizers, added, *self.places(frozen, trainer.optimizers)):
            rank_zero_info(f"{type(self).__name__}: {said}")
        if not network.training:
            rank_zero_warn(
                f"the adapted module ({type(network).__name__}) is in eval mode at the start of fit, so its dropout and"
                " batch statistics are off: from_pretrained returns it so; call .train() in the LightningModule if"
                " that is not meant"
            )
        if trainer.is_global_zero:
            kept = install_checkpoint_io(trainer).kept_bytes()
            rows = {**self.summary(trainer), **self._head_row()}
            print_table(type(self).__name__, rows, network, self._frozen, kept, trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Checks, before each epoch's first step, that what is frozen is still frozen.

        Raises:
            GPartError: if it is not, or what is trained has been frozen.
        """
        self._stepped = True
        if batch_idx == 0:
            self.check_flags()

    def check_flags(self) -> None:
        """Checks that what is frozen is still frozen, and the method's own numbers are trained.

        Raises:
            GPartError: if not.
        """
        if self._flags is not None and self._network is not None:
            head = saved_parameters(self._network, self.modules_to_save)[1]
            self._flags.check(type(self).__name__, head)

    def _keep_frozen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before an average takes the model's place, which Lightning's callbacks do in these hooks.
        if self._network is not None:
            keep_frozen(self._callbacks(trainer), pl_module, self._network)

    on_train_epoch_start = on_validation_epoch_start = on_train_end = _keep_frozen

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the folder, if one was asked for; ``fast_dev_run`` writes nothing.

        A fit that takes no step, as where ``max_epochs`` were reached before, leaves a folder that is there as it is.
        """
        if self.save_folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # as above
            return
        # Asked on one rank: another may have written the folder by the time that a slower one looks.
        if not self._stepped and trainer.strategy.broadcast(holds_adapter(self.save_folder)):
            rank_zero_warn(f"fit took no step: {self.save_folder} stays as it is")
            return
        self.write(trainer, pl_module, self.save_folder)

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: str) -> None:
        """Writes what was trained to a folder; every rank calls it."""
        raise NotImplementedError

    def shard(self, trainer: Trainer) -> None:
        """What the method does when ``configure_model`` has sharded the network, where the strategy is one that shards.

        Raises:
            GPartError: if the method cannot be sharded.
        """
        if shards(trainer.strategy):
            strategy = strategy_name(trainer.strategy)
            raise GPartError(f"{type(self).__name__} under {strategy} is not supported: use strategy 'ddp'")

    def summary(self, trainer: Trainer) -> dict[str, str]:
        """The method's own rows of the table."""
        return {}

    def counts(self) -> tuple[int, int]:
        """Numbers trained in the adapted network, and how many of them are the head's (``modules_to_save``).

        Raises:
            GPartError: before the network is built.
        """
        if self._network is None:
            raise GPartError(f"{type(self).__name__} has not been applied yet")
        head = set(saved_parameters(self._network, self.modules_to_save)[1])
        trained = {id(value): value for value in self._network.parameters() if value.requires_grad}
        named = named_parameters(self._network, remove_duplicate=False)
        of_head = {id(value): value for name, value in named.items() if name in head and id(value) in trained}
        return sum(value.numel() for value in trained.values()), sum(value.numel() for value in of_head.values())

    def _head_row(self) -> dict[str, str]:
        """The table's row of what is trained in full."""
        if self._network is None or not self.modules_to_save:
            return {}
        paths, _ = saved_parameters(self._network, self.modules_to_save)
        return {f"head: {', '.join(paths)}": f"{self.counts()[1]:,}"}

    def refuse_random(self, network: nn.Module, frozen: list[str]) -> None:
        """Checks that nothing is frozen that Transformers has just initialised at random, nor rows that were added to it.

        Raises:
            GPartError: if so, with the names: the forgotten head, the embedding that was resized.
        """
        refuse_resized(network, frozen, self.modules_to_save)
        if forgotten := randomly_initialised(network, frozen):
            raise GPartError(
                f"modules_to_save={self.modules_to_save!r} leaves out {forgotten}, which Transformers has just"
                " initialised at random"
            )

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path, network = self._applied_to(pl_module) or find_network(pl_module, self.module, self.copies)
        refuse_pruning(self._callbacks(trainer), type(self).__name__, network)
        whole_by_default = self.module is None and network is pl_module and self._network is not network
        planned = self.planned(network) if whole_by_default else ((), ())
        if whole_by_default:
            refuse_frozen_beside(pl_module, *planned)
        trained = [name for name, value in pl_module.named_parameters() if value.requires_grad]
        before = set(named_parameters(network))
        children = [name for name, child in pl_module.named_children() if any(True for _ in child.children())]
        self._contents = self.apply(network)
        if whole_by_default:
            tell_frozen(pl_module, [name for name in trained if "." not in name], children)
            tell_frozen_children(pl_module, trained, *planned)
        if self._network is not network:  # FSDP 1 may leave a part of it here
            self._frozen = sum(value.numel() for value in network.parameters() if not value.requires_grad)
        names = set(named_parameters(network))
        if self._network is not network or shards(trainer.strategy):  # which may rename them
            self._known = names
        self._network, self._path, self._flags = network, path, Flags(network)
        self._added |= names - before
        install_checkpoint_io(trainer).connect(pl_module, path, self._contents, self.name)

    def _applied_to(self, pl_module: LightningModule) -> tuple[str, nn.Module] | None:
        """Where this method is applied already: a child that was built since does not change the choice."""
        if self._network is None or self.module is not None:
            return None
        found = [path for path, module in named_modules(pl_module) if module is self._network]
        return (found[0], self._network) if found else None

    def _defer(self, trainer: Trainer, pl_module: LightningModule) -> None:
        original = pl_module.configure_model

        def configure_model() -> None:
            with self.untouched():
                original()
            self._apply(trainer, pl_module)
            self.shard(trainer)

        self._replace(pl_module, "configure_model", configure_model)

    def _run_untouched(self, pl_module: LightningModule, name: str) -> None:
        """Lets one of the module's own hooks run within :meth:`untouched`."""
        if not is_overridden(name, pl_module):
            return
        original = getattr(pl_module, name)

        def hook(*args: Any, **given: Any) -> Any:  # as Lightning calls it, and as a project may
            with self.untouched():
                return original(*args, **given)

        self._replace(pl_module, name, hook)

    def _replace(self, pl_module: LightningModule, name: str, method: Callable[..., Any]) -> None:
        """Puts a method in the place of this instance's own, until teardown.

        Not by functools.wraps: Lightning's is_overridden would look through it, and skip the call of a method that the
        module does not have itself.
        """
        if name in self._undo:
            return
        attributes = pl_module.__dict__
        vars(method)["below"] = attributes.get(name)
        attributes[name] = method
        self._undo[name] = partial(_take_out, method, name, attributes)

    def _take_back(self) -> None:
        """Gives the module its own methods back; when fit starts, so that the module can be pickled from then on."""
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    @staticmethod
    def _callbacks(trainer: Trainer) -> list[Callback]:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        return callbacks

    def _move_first(self, trainer: Trainer) -> list[Callback]:
        """Puts this callback before those that copy the model; returns those whose setup has already done so."""
        callbacks = self._callbacks(trainer)
        before = callbacks[: callbacks.index(self)] if self in callbacks else []
        copying: list[Callback] = [callback for callback in before if is_a(callback, *COPYING)]
        if copying:
            # A new list: Lightning is iterating over the present one.
            trainer.callbacks = [self, *[callback for callback in callbacks if callback is not self]]  # type: ignore[attr-defined]
        return copying


def _take_out(method: Callable[..., Any], name: str, attributes: dict[str, Any]) -> None:
    """Takes a method out of an instance's attributes, also where another callback has put its own over it since."""
    vars(method)["taken_out"] = True
    top = attributes.get(name)
    while top is not None and "taken_out" in getattr(top, "__dict__", {}):
        top = top.below
    if top is None:
        attributes.pop(name, None)
    else:
        attributes[name] = top


def install_checkpoint_io(trainer: Trainer) -> GPartCheckpointIO:
    """The trainer's GPartCheckpointIO, put around the plugin it has where there is none yet."""
    plugin = trainer.strategy.checkpoint_io
    if not isinstance(plugin, GPartCheckpointIO):
        plugin = GPartCheckpointIO(plugin)
        trainer.strategy.checkpoint_io = plugin
    return plugin
