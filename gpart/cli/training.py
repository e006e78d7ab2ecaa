"""``gpart fit | validate | test | predict``: Lightning's own CLI with one key more, ``method:``."""

from __future__ import annotations

import re
import sys
import warnings
from typing import Any, NoReturn

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# The rooms are imported so that recipes can name their classes by the short name.
import gpart.callbacks
import gpart.datamodules
import gpart.lightning_modules
from gpart.cli.configs import with_recipes
from gpart.cli.message import one_line
from gpart.cli.quiet import silence_warnings
from gpart.serialization.checkpoint_file import load_checkpoint_file

DESCRIPTION = """Fine-tune by a YAML recipe. --config takes a file or a shipped recipe's name and may be given several
times, the later winning; every setting can be overridden by its dotted name. 'gpart configs' lists the recipes,
'gpart study FILE' runs methods x tasks x seeds and writes their table, 'gpart params MODEL' counts what each method
trains."""

CLASSES = {
    "model": gpart.lightning_modules.__all__,
    "data": gpart.datamodules.__all__,
    "method": gpart.callbacks.__all__,
}
"""The short names that each key takes, for messages."""


class Parser(LightningArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the line and exits with status 2."""
        line = one_line(message)
        unknown = re.search(r'Parser key "(\w+)".*Expected a dot import path string: (\w+)', line)
        if unknown and unknown[1] in CLASSES:
            names = ", ".join(CLASSES[unknown[1]])
            line = (
                f"{unknown[1]}: there is no class {unknown[2]!r}; gpart's are {names}, others go by their import path"
            )
        print(f"gpart: error: {line}", file=sys.stderr)
        sys.exit(2)


class GPartCLI(LightningCLI):
    """LightningCLI whose fine-tuning method has a key of its own, so that an overlay changes it and nothing else."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``method:``, any Callback; without it everything is trained. ``fit`` also takes ``test_best``."""
        parser.add_lightning_class_args(Callback, "method", subclass_mode=True, required=False)
        parser.add_argument(
            "--test_best", type=bool, default=False, help="after fit, score the best checkpoint by the test dataloader"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the words that main was given, without Lightning's warning that the process has others."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # run gives a list of words
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        """Lightning reads a checkpoint's hyperparameters while parsing: a damaged file is to be named, not traced."""
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path and path not in ("best", "last", "hpc", "registry") and "://" not in str(path):
            load_checkpoint_file(path)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        # The absent method comes as None.
        return super()._instantiate_trainer(config, [callback for callback in callbacks if callback is not None])

    def after_fit(self) -> None:
        """Says how good it is and where it is."""
        checkpoint = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if self.trainer.is_global_zero:
            self._report(checkpoint)
        if self._get(self.config_init, "test_best"):
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint or None)

    def _report(self, checkpoint: str) -> None:
        scores = {
            name: value.item() for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")
        }
        print("  ".join(["last epoch:", *(f"{name} {value:.4f}" for name, value in scores.items())]))
        if checkpoint:
            print(f"best checkpoint: {checkpoint}")
        method = self._get(self.config_init, "method")
        if getattr(method, "save_folder", None):
            print(f"adapter folder: {method.save_folder}")


def run(words: list[str]) -> None:
    """Parses the words and runs the Trainer's method.

    Raises:
        ValueError: if Lightning refuses the settings.
        FileNotFoundError: if a recipe is not there.
    """
    try:
        with warnings.catch_warnings():
            silence_warnings()
            GPartCLI(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                parser_class=Parser,
                parser_kwargs={"prog": "gpart", "description": DESCRIPTION},
                # A run into the same folder is a run again, not an error.
                save_config_kwargs={"overwrite": True},
                # The modules make their own optimizers, with two learning rates.
                auto_configure_optimizers=False,
                args=with_recipes(words),
            )
    except (MisconfigurationException, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error
