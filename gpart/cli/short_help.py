"""The ``--help`` of ``gpart fit | validate | test | predict``: the settings that people set, in few words.

Invariant: every setting that is shown is one of the command's, with its default unless that is nothing. The others, and what Lightning says of
each, are in ``--help-all``.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

Shown = dict[str, str]
"""What a setting does, by the setting with what it takes."""

OWN: Shown = {
    "--help-all": "show all settings, with Lightning's descriptions, and exit",
    "--config RECIPE": "a recipe: a file, or the name of a shipped one; may be repeated",
    "--print_config": "print the settings that result, and exit",
    "--seed_everything N": "the run's seed; true draws a random one",
    "--ckpt_path CKPT": "a checkpoint file; or last or best, of an earlier run",
    "--own_folder BOOL": "write everything, such as method.save_folder, below trainer.default_root_dir",
}
OWN_OF = {
    "fit": {
        "--resume": "resume from the newest checkpoint in the run's folder",
        "--test_best BOOL": "after fit, score the best checkpoint on the test set",
    },
    "predict": {"--output FILE": "where predictions go, if not to the terminal: .jsonl, .csv, .tsv or .parquet"},
}

TRAINING: Shown = {
    "max_epochs N": "stop after N epochs; default 1000 if max_steps is not set either",
    "max_steps N": "stop after N optimizer steps; -1: no limit",
    "max_time TIME": "stop after a time, such as 00:12:00:00 for twelve hours",
    "accumulate_grad_batches N": "batches per optimizer step",
    "gradient_clip_val NORM": "clip the gradient to this norm",
    "limit_train_batches N": "batches per epoch, or a fraction of them",
    "limit_val_batches N": "the same for validation; 0 skips it",
    "val_check_interval N": "batches between validations, or a fraction of an epoch",
    "check_val_every_n_epoch N": "epochs between validations",
    "num_sanity_val_steps N": "validation batches to try before the first step",
    "log_every_n_steps N": "steps between logged values",
    "enable_checkpointing BOOL": "whether checkpoints are written",
    "overfit_batches N": "train and validate on N batches, or a fraction, to find bugs",
    "detect_anomaly BOOL": "stop at a gradient that is not a number; slow",
}
RUNNING: Shown = {
    "accelerator NAME": "cpu, gpu, mps, tpu or auto",
    "devices N": "how many devices, or which, such as [0,2]",
    "num_nodes N": "number of machines",
    "strategy NAME": "how devices share the work: ddp, fsdp or auto",
    "precision NAME": "32-true, bf16-true, bf16-mixed or 16-mixed",
    "logger CLASS": "TensorBoardLogger, CSVLogger, WandbLogger; false: none",
    "callbacks+ CLASS": "add a callback, such as EarlyStopping",
    "default_root_dir FOLDER": "where logs and checkpoints go",
    "deterministic BOOL": "use only algorithms that give the same result again",
    "enable_progress_bar BOOL": "whether to show a progress bar",
    "fast_dev_run N": "run N batches of each part only, and write nothing; true is 1",
    "profiler NAME": "simple, advanced or pytorch: where the time goes",
}
"""Settings of the Trainer for every command; those above are of ``fit`` alone."""
LIMITS = {"validate": "val", "test": "test", "predict": "predict"}

CLASS = {
    "": "{known}; or the import path of your own",
    ".SETTING VALUE": "one of its settings, such as {example}",
    ".help CLASS": "show its settings, and exit",
}
"""Lines of a setting that takes a class; the first one's metavar is CLASS too."""
EXAMPLES = {
    "model": "--model.model packaged:minilm",
    "data": "--data.batch_size 32",
    "method": "--method.d 2048",
    "optimizer": "--optimizer.lr 0.001",
    "lr_scheduler": "--lr_scheduler.gamma 0.9",
}
KNOWN = {"optimizer": "AdamW, SGD and others", "lr_scheduler": "ExponentialLR, StepLR and others"}

EPILOG = """--help-all shows all settings. --method.help GPartCallback shows those of a class, and so do --model.help and
--data.help with the names above."""


def short_help(parser: argparse.ArgumentParser, command: str, headings: dict[str, str], known: dict[str, str]) -> str:
    """The text.

    Args:
        parser: the command's, which has the settings and their defaults.
        command: its name.
        headings: of the groups of settings, by their key.
        known: the classes that a key takes, by the key.
    """
    shown = argparse.ArgumentParser(
        prog=parser.prog,
        usage=parser.usage,
        description=parser.description,
        epilog=EPILOG,
        add_help=False,
        allow_abbrev=False,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=40),
    )
    defaults = {action.dest: action.default for action in parser._actions}
    own = shown.add_argument_group("options")
    own.add_argument("-h", "--help", action="store_true", help="show this text and exit")
    for words, says in {**OWN, **OWN_OF.get(command, {})}.items():
        _add(own, words, says, defaults)
    trainer = shown.add_argument_group(headings["trainer"])
    limit = {f"limit_{LIMITS[command]}_batches N": "batches, or a fraction of them"} if command in LIMITS else TRAINING
    for words, says in {**limit, **RUNNING}.items():
        _add(trainer, f"--trainer.{words}", says, defaults)
    for key, example in EXAMPLES.items():
        if command != "fit" and key in KNOWN:
            continue  # nothing is trained
        group = shown.add_argument_group(headings[key])
        for suffix, says in CLASS.items():
            text = says.format(known=known.get(key) or KNOWN[key], example=example)
            _add(group, f"--{key}{suffix or ' CLASS'}", text, {})
    return shown.format_help()


def _add(group: argparse._ArgumentGroup, words: str, says: str, defaults: dict[str, Any]) -> None:
    name, _, takes = words.partition(" ")
    default = defaults.get(name.removeprefix("--").removesuffix("+"))
    if takes and default and default is not argparse.SUPPRESS:
        says = f"{says} (default: {str(default).lower() if isinstance(default, bool) else default})"
    if takes:
        group.add_argument(name, metavar=takes, help=says)
    else:
        group.add_argument(name, action="store_true", help=says)
