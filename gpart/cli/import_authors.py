"""``gpart import``: an adapter of the paper's own code as one of ours.

Invariant: what stands at OUT was read onto the base that is named, so that it has a list of its weights, D, and the base's
fingerprint, and is checked from then on.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gpart.cli.message import Parser
from gpart.errors import GPartError
from gpart.loading import load_authors_adapter
from gpart.serialization.authors import read_authors
from gpart.serialization.folder import CONFIG, TENSORS
from gpart.serialization.locations import inside, located, read

DESCRIPTION = """Makes an adapter that the paper's own code (SamsungLabs/GPart) wrote into FOLDER one of this package, in the folder
OUT. Its files do not say which model they belong to, so that --base is taken at its word: the groups are those of the weights
that this model has under the adapter's target_modules, in the order of its modules. D is printed; compare it with the number
that the training run printed."""

_CLASSES = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}
"""By the ``task_type`` in their config."""


def import_command(words: list[str]) -> int:
    """Writes the folder.

    Raises:
        GPartFileError: if there is no such folder or base.
        GPartError: if the adapter cannot be read, does not fit the base, or OUT holds an adapter already.
    """
    asked = _parser().parse_args(words)
    if not asked.force and (there := [name for name in (CONFIG, TENSORS) if (Path(asked.out) / name).exists()]):
        raise GPartError(f"{asked.out} holds {there[0]} already: --force writes over it")
    try:
        config, tensors = read_authors(asked.folder, asked.backend)
    except GPartError as error:
        raise type(error)(str(error).replace("backend='", "--backend '")) from error
    model = _load_base(asked.base, asked.model_class or _class_for(asked.folder), tensors)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = load_authors_adapter(model, asked.folder, asked.backend)
    for each in caught:
        if issubclass(each.category, UserWarning):
            print(f"gpart: warning: {' '.join(str(each.message).split())}", file=sys.stderr)
    adapter.save(asked.out)
    written = {
        "folder": asked.folder,
        "base": asked.base,
        "out": asked.out,
        "projection": config.projection,
        "d": config.d,
        "D": adapter.size,
        "weights": len(adapter.plan.weights),
        "modules_to_save": config.modules_to_save,
    }
    if asked.json:
        print(json.dumps(written, indent=2))
    else:
        print(f"written: {asked.out} ({config.projection}, d = {config.d:,} on D = {adapter.size:,} weights)")
    return 0


def _class_for(folder: str) -> str:
    described = json.loads(read(inside(located(folder), CONFIG)))
    return _CLASSES.get(str(described.get("task_type")), "AutoModel")


def _load_base(name: str, model_class: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model of Transformers, whose head is as large as the adapter's."""
    import transformers  # noqa: PLC0415  # seconds, and only this command's last part needs it

    found: Any = getattr(transformers, model_class, None)
    if not hasattr(found, "from_pretrained"):
        raise GPartError(f"--model-class {model_class}: Transformers {transformers.__version__} has no such class")
    heads = [value for _, value in sorted(tensors.items()) if value.dim() == 2]
    sized = {"num_labels": len(heads[-1])} if heads and "Classification" in model_class else {}
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the heads that it draws at random are filled, or refused
    try:
        model: nn.Module = found.from_pretrained(name, ignore_mismatched_sizes=True, **sized)
    except (OSError, ValueError, RuntimeError) as error:
        raise GPartError(f"base {name!r} can't be loaded as {model_class}: {error}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    return model.eval()


def _parser() -> Parser:
    parser = Parser(prog="gpart import", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="adapter_config.json and adapter_model.safetensors of theirs")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--base", required=True, metavar="MODEL", help="the model that it was trained on")
    parser.add_argument(
        "--backend",
        choices=["stateless", "materialized"],
        help="the map that it was trained with, where FOLDER names none: materialized, if it was written from 2026-06-08 on",
    )
    parser.add_argument(
        "--model-class", metavar="CLASS", help="Transformers' class for the base; default: by the adapter's task_type"
    )
    parser.add_argument("--force", action="store_true", help="write over an adapter in OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
