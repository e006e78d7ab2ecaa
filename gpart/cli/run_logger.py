"""Where the command logs a run if no logger is chosen: TensorBoard, in a folder that bears the run's name.

Invariant: two runs share no folder, a command writes one event file, and a run that ends before its first step leaves none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.tensorboard import _TENSORBOARD_AVAILABLE
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gpart.serialization.locations import inside, is_folder, located

FOLDER = "lightning_logs"
"""Below ``default_root_dir``, as Lightning has it."""


class RunLogger(TensorBoardLogger):
    """Lightning's, whose event file stays open when fit has ended: scores of a test that follows go into it."""

    def finalize(self, status: str) -> None:
        """Writes what there is."""
        if self._experiment is not None:
            self.experiment.flush()
        if status == "success":
            self.save()


class RunRecord(Callback):
    """Puts the method's settings and the final scores into the hparams tab, and clears up after a run without a step.

    Args:
        settings: by name.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them."""
        scores = {
            f"final/{name}": value.item()
            for name, value in trainer.callback_metrics.items()
            if isinstance(value, Tensor) and value.numel() == 1
        }
        if trainer.is_global_zero and isinstance(trainer.logger, RunLogger) and scores:
            trainer.logger.log_hyperparams(self.settings, scores, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the folder of a run that made no step: nothing but its settings is in it."""
        folder = located(trainer.logger.log_dir) if isinstance(trainer.logger, RunLogger) else None
        unused = trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING and trainer.global_step == 0
        if unused and isinstance(folder, Path) and not any(folder.rglob("*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)


def recorded(command: str, words: Sequence[str], config: Mapping[str, Any], trainer: dict[str, Any]) -> RunRecord:
    """The callback that records a run, and the logger, put into the Trainer's settings if none was chosen there.

    Args:
        command: such as ``fit``.
        words: of the command line.
        config: the command's settings.
        trainer: the Trainer's, whose callbacks and loggers are made already.
    """
    if trainer.get("logger") in (None, True) and not trainer.get("fast_dev_run"):
        named = run_logger(trainer.get("default_root_dir"), run_name(command, words, config))
        trainer["logger"] = named or trainer.get("logger")
    method = config.get("method")
    settings = vars(method["init_args"]) if method and method.get("init_args") else {}
    return RunRecord({"seed": config.get("seed_everything"), **settings})


def run_name(command: str, words: Sequence[str], config: Mapping[str, Any]) -> str:
    """A run's name: its recipe, method, d and seed, as far as it has them.

    Example:
        >>> method = {"class_path": "gpart.callbacks.GPartCallback", "init_args": {"d": 50}}
        >>> run_name("fit", ["--config=glue/rte.yaml", "--config=methods/x"], {"method": method, "seed_everything": 3})
        'rte-GPart-d50-seed3'
        >>> run_name("test", [], {})
        'test'
    """
    recipe = next((Path(word.removeprefix("--config=")).stem for word in words if word.startswith("--config=")), None)
    method, seed = config.get("method"), config.get("seed_everything")
    parts = [] if recipe is None else [recipe]
    if method:
        parts.append(str(method["class_path"]).rpartition(".")[2].removesuffix("Callback"))
        d = (method.get("init_args") or {}).get("d")
        parts += [] if d is None else [f"d{d}"]
    parts += [] if seed is None or isinstance(seed, bool) else [f"seed{seed}"]
    return re.sub(r"[^\w.=+-]+", "-", "-".join(parts + ([] if command == "fit" else [command])))


def run_logger(root: str | None, name: str) -> RunLogger | None:
    """The logger of a run with this name; None where Lightning's own choice is better: without TensorBoard, and on Slurm.

    Args:
        root: the run's ``default_root_dir``; None is the current folder.
        name: of the run. If it is taken, a number follows it.
    """
    if not _TENSORBOARD_AVAILABLE or SLURMEnvironment.job_id() is not None:
        return None  # Slurm's job has its number, by which it finds itself again
    save_dir = root or "."
    runs = inside(located(save_dir), FOLDER)
    version, number = name, 1
    while is_folder(inside(runs, version)):
        number += 1
        version = f"{name}-{number}"
    return RunLogger(save_dir, name=FOLDER, version=version, default_hp_metric=False)
