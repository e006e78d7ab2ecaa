"""``gpart fit | validate | test | predict``: Lightning's own CLI with one key more, ``method:``."""

from __future__ import annotations

import warnings
from functools import update_wrapper
from types import MethodType
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, instantiate_class

from gpart.bases.current_folder import look_in_current_folder
from gpart.callbacks import PredictionWriter
from gpart.callbacks.packages import is_a
from gpart.callbacks.saving import keeper_of
from gpart.cli.adapter_settings import take_settings
from gpart.cli.checkpoints import NAMES, find_checkpoint
from gpart.cli.commands import TRAINING
from gpart.cli.configs import with_recipes
from gpart.cli.last_state import with_last_state
from gpart.cli.message import causes, own_warnings_in_a_line, told
from gpart.cli.own_folder import into_own_folder
from gpart.cli.parser import HEADINGS, RECIPES, Parser, add_help
from gpart.cli.progress import shown_progress
from gpart.cli.quiet import silence_warnings
from gpart.cli.resume import ResumedSettings, ask_for_training, model_settings
from gpart.cli.run_logger import recorded
from gpart.cli.saved_config import SavedConfig
from gpart.cli.scored_part import ScoredPart
from gpart.errors import GPartError
from gpart.serialization.checkpoint_file import load_checkpoint_file

REFUSALS = (MisconfigurationException, yaml.YAMLError)
"""What Lightning and PyYAML raise of a user's mistake."""

_WRITERS: tuple[type[Callback], ...] = (PredictionWriter, BasePredictionWriter)
"""Callbacks that see to what is predicted."""


class GPartCLI(LightningCLI):
    """LightningCLI whose fine-tuning method has a key of its own, so that an overlay changes it and nothing else."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``method:``, any Callback; without it everything is trained. ``fit`` also has ``test_best`` and ``resume``."""
        parser.add_lightning_class_args(Callback, "method", subclass_mode=True, required=False)
        parser.add_argument(
            "--test_best", type=bool, default=False, help="After fit, score the best checkpoint on the test set."
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            help="Resume from the newest checkpoint in the run's folder: the same as --ckpt_path last.",
        )
        parser.add_argument(
            "--own_folder",
            type=bool,
            default=False,
            help="Write everything, such as method.save_folder, below trainer.default_root_dir.",
        )
        # Ten lines that tell what the method's table does.
        parser.set_defaults({"trainer.enable_model_summary": False})
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        # Else they are the first lines of Lightning's docstrings, some cut in the middle.
        groups = parser.groups or {}
        for key, title in HEADINGS.items():
            groups[key].title = title

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument(
                "--output",
                type=str,
                default=None,
                help="Where predictions go: a .jsonl, .csv, .tsv or .parquet file. Without it or a writer among the callbacks"
                " they are printed.",
            )
        add_help(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the words that main was given, without Lightning's warning that the process has others."""
        try:
            self.config = parser.parse_args(args)  # type: ignore[arg-type]  # run gives a list of words
        except BrokenPipeError:  # what --print_config has no reader for
            raise
        except (ValueError, OSError) as error:  # of a file that a word names, such as one that is no text
            raise GPartError(told(error)) from error
        self._words = list(args or [])
        command = self.config.get("subcommand")
        if command and self.config[command].get("own_folder"):
            into_own_folder(self.config[command])

    def _parse_ckpt_path(self) -> None:
        """As Lightning's, but words of the command line go over the checkpoint's hyperparameters, and so does the class.

        ``last`` and ``best`` are looked for in the folders of earlier runs, not of the new one.

        Raises:
            GPartError: if there is no such checkpoint, or it cannot be read: a damaged file is named, not traced.
        """
        command = self.config["subcommand"]
        config = self.config[command]
        if config.get("resume"):
            if config.get("ckpt_path"):
                raise GPartError(
                    f"--resume goes on from the newest checkpoint, and --ckpt_path is {config['ckpt_path']}"
                )
            config["ckpt_path"] = "last"
        if config.get("ckpt_path") in NAMES:
            config["ckpt_path"] = find_checkpoint(config["ckpt_path"], config["trainer"])
        path, model = config.get("ckpt_path"), config["model"]
        if not path or path in ("hpc", "registry"):
            return
        saved = load_checkpoint_file(path).get("hyper_parameters") or {}
        theirs = {name: value for name, value in saved.items() if name not in ("_class_path", "_instantiator")}
        for name in model_settings(self._words):
            theirs.pop(name, None)
        if theirs:
            both = {"class_path": model["class_path"], "dict_kwargs": theirs}
            self.config = self.parser.parse_object({command: {"model": both}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Takes settings from the adapter that is scored or predicted with; a fit that starts from one has its own."""
        if self.subcommand != "fit":
            take_settings(self.config[str(self.subcommand)], self._words)

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """As Lightning's, but they are made when the Trainer asks: the network may not be built before.

        Raises:
            GPartError: if there is a schedule for no optimizer.
        """
        chosen, schedule = (self._get(self.config_init, key) for key in ("optimizer", "lr_scheduler"))
        if schedule and not chosen:
            raise GPartError(
                f"lr_scheduler={schedule['class_path']} needs --optimizer: the model's own optimizer has its own schedule"
            )
        if not chosen:
            return

        def made(module: LightningModule) -> Any:
            optimizer = instantiate_class(module.parameters(), chosen)
            return self.configure_optimizers(
                module, optimizer, instantiate_class(optimizer, schedule) if schedule else None
            )

        update_wrapper(made, self.configure_optimizers)  # Lightning looks through it for whether it is overridden
        self.model.configure_optimizers = MethodType(made, self.model)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        # The absent method comes as None.
        present = [callback for callback in callbacks if callback is not None]
        given = config.get("callbacks") or []
        config["callbacks"] = given if isinstance(given, list) else [given]
        if output := self._get(self.config_init, "output"):
            others = [one for one in config["callbacks"] if not isinstance(one, PredictionWriter)]
            config["callbacks"] = [*others, PredictionWriter(output)]
        elif self.subcommand == "predict" and not any(is_a(one, *_WRITERS) for one in config["callbacks"]):
            config["callbacks"] = [*config["callbacks"], PredictionWriter()]  # nobody else says what came out
        present.append(ResumedSettings(ask_for_training(self._words)))
        if self._get(self.config_init, "test_best"):
            present.append(ScoredPart())
        if config.get("enable_checkpointing") is not False:
            config["callbacks"] = with_last_state(config.get("callbacks") or [])
        present += shown_progress(config)
        present.append(recorded(str(self.subcommand), self._words, self.config[self.subcommand], config))
        try:
            return super()._instantiate_trainer(config, present)
        except (TypeError, ValueError) as error:  # a setting that the Trainer refuses: it does nothing else yet
            raise GPartError(f"trainer: {told(error)}") from error

    def after_fit(self) -> None:
        """Says how good it is and where it is."""
        by_score = keeper_of(self.trainer)
        checkpoint = getattr(by_score or self.trainer.checkpoint_callback, "best_model_path", "")
        if self.trainer.is_global_zero:
            # Lightning calls the last one that was kept the best, too, where no score chose one.
            self._report("checkpoint" if by_score is None else "best checkpoint", checkpoint)
        if self._get(self.config_init, "test_best"):
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint or None)

    def _report(self, kind: str, checkpoint: str) -> None:
        # Validation's, by whatever name a module of one's own logs them: what begins with "val", and what is watched.
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        watched = {getattr(callback, "monitor", None) for callback in callbacks}
        scores = {
            name: value.item()
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val") or name in watched
        }
        if scores:
            print("  ".join(["last epoch:", *(f"{name} {value:.4f}" for name, value in scores.items())]))
        if checkpoint:
            print(f"{kind}: {checkpoint}")
        method = self._get(self.config_init, "method")
        if getattr(method, "save_folder", None):
            print(f"adapter folder: {method.save_folder}")


def run(words: list[str]) -> None:
    """Parses the words and runs the Trainer's method.

    Raises:
        GPartError: if a recipe is not there, or Lightning refuses the settings.
    """
    own = {
        name: {
            "usage": f"gpart {name} --config RECIPE [--SETTING=VALUE ...]",
            "description": f"{says.capitalize()}. {RECIPES}",
            "add_help": False,  # it gets one of our own
        }
        for name, says in TRAINING.items()
    }
    look_in_current_folder()
    try:
        with warnings.catch_warnings(), own_warnings_in_a_line():
            silence_warnings()
            GPartCLI(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SavedConfig,
                parser_class=Parser,
                parser_kwargs={"prog": "gpart", **own},
                # A run into the same folder is a run again, not an error.
                save_config_kwargs={"overwrite": True},
                args=with_recipes(words),
            )
    except Exception as error:
        known = (each for each in causes(error) if isinstance(each, (GPartError, *REFUSALS)))
        refused = next(known, None)
        if refused is None or isinstance(refused, GPartError):
            raise
        raise GPartError(str(refused)) from error
