"""What holds when a run goes on from a checkpoint and the command line asks for something else.

Rule: a word of the command line goes over the checkpoint's hyperparameters, and these go over the recipe's. The
optimizers and schedules go on as they were: where that is not what was asked for, the run is refused before its first
step, or, if no word asked for it, a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from gpart.errors import GPartError

SETTINGS_KEY = "gpart_cli_settings"
"""Where a checkpoint holds what its optimizers and schedules were made with: on their way their own values change."""

Settings = list[dict[str, Any]]
"""By optimizer group, then by schedule."""


def model_settings(words: Iterable[str]) -> list[str]:
    """The model's settings that words of a command line give, by their first name.

    Example:
        >>> model_settings(["fit", "--model", "proj.Net", "--model.lr=0.1", "--model.init_args.net.width", "8"])
        ['lr', 'net']
    """
    given = [word.split("=")[0].removeprefix("--model.") for word in words if word.startswith("--model.")]
    return [name.removeprefix("init_args.").split(".")[0].removesuffix("+") for name in given]


def ask_for_training(words: Iterable[str]) -> bool:
    """Whether words of a command line give a setting that the optimizer may come from."""
    return any(word.startswith(("--model.", "--optimizer", "--lr_scheduler")) for word in words)


class ResumedSettings(Callback):
    """Sees to it that what a resumed run trains with is what was asked for.

    Args:
        asked: whether the command line gives settings of the model or the optimizer: it is then an error if they would
            not take hold, and else a warning.
    """

    def __init__(self, asked: bool) -> None:
        self.asked = asked
        self._made: Settings = []
        self._before: Settings | None = None
        self._resumed = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what the optimizers and schedules were made with: Lightning restores their state next."""
        self._made = [*_groups(trainer.optimizers), *_schedules(trainer)]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes it."""
        checkpoint[SETTINGS_KEY] = self._made

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Reads what the checkpoint's were made with."""
        self._before, self._resumed = checkpoint.get(SETTINGS_KEY), True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares.

        Raises:
            GPartError: if the resumed run would train with other settings than the command line asks for.
        """
        if not self._resumed:
            return
        # A file that the command did not write tells only where the optimizers' settings were restored to.
        before = self._before if self._before is not None else list(_groups(trainer.optimizers))
        found = list(dict.fromkeys(_differences(before, self._made)))
        if not found:
            return
        message = (
            f"{trainer.ckpt_path} goes on with its own optimizer and schedule: {'; '.join(found)}. Leave those settings"
            " as they were to resume; or begin anew from what it has learned, by --method.adapter in place of"
            " --ckpt_path"
        )
        # Another optimizer would stumble over the restored groups at its first step.
        others = any(old.keys() != new.keys() for old, new in zip(before, self._made, strict=False))
        if self.asked or others:
            raise GPartError(message)
        rank_zero_warn(message)


def _groups(optimizers: Iterable[Optimizer]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            # A schedule has changed the rate already when it is made.
            rate = settings.pop("initial_lr", settings.get("lr"))
            yield _plain({**settings, "lr": rate})


def _schedules(trainer: Trainer) -> Iterator[dict[str, Any]]:
    for config in trainer.lr_scheduler_configs:
        state = config.scheduler.state_dict()
        # base_lrs are the groups' rates, which are compared.
        yield _plain({name: value for name, value in state.items() if name[0] != "_" and name != "base_lrs"})


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that any checkpoint can hold and that compare by value."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return {name: value for name, value in listed.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _differences(before: Settings, made: Settings) -> Iterator[str]:
    for old, new in zip(before, made, strict=False):  # their number is compared by the optimizers' own load_state_dict
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{name} is {old.get(name)!r} there, {new.get(name)!r} was asked for"
