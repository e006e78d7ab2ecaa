"""``gpart import``: an adapter of the paper's own code as one of ours.

Invariant: what stands at OUT was read onto the base that is named, so that it has a list of its weights, D, and the base's
fingerprint, and is checked from then on.
"""

from __future__ import annotations

import json
from pathlib import Path

from gpart.bases.models import PYTHON, load_base
from gpart.cli.adapters import check_named
from gpart.cli.message import Parser, warnings_told
from gpart.errors import GPartError
from gpart.loading import load_authors_adapter
from gpart.serialization.authors import base_of_authors, read_authors
from gpart.serialization.folder import CONFIG, TENSORS, adapter_place, written_place
from gpart.serialization.locations import inside, is_file
from gpart.serialization.manifest import Manifest

DESCRIPTION = """Makes an adapter that the paper's own code (SamsungLabs/GPart) wrote into FOLDER one of this package, in the folder
OUT. Its files have no fingerprint of their model, so that --base, or the name that they have for it, is taken at its word: the
groups are those of the weights that this model has under the adapter's target_modules, in the order of its modules. D is printed; compare it with the number
that the training run printed."""


def import_command(words: list[str]) -> int:
    """Writes the folder.

    Raises:
        GPartFileError: if there is no such folder or base.
        GPartError: if the adapter cannot be read, does not fit the base, or OUT holds an adapter already.
    """
    asked = _parser().parse_args(words)
    _check_out(asked.folder, asked.out, asked.force)
    try:
        config, tensors = read_authors(asked.folder, asked.backend)
    except GPartError as error:
        raise type(error)(str(error).replace("backend='", "--backend '")) from error
    named = _base(asked.folder) if asked.base is None else asked.base
    needed = Manifest("default", config, size=0, weights=[], base="")  # of whose tensors the heads are looked for
    model = load_base(named, needed, tensors, model_class=asked.model_class).model
    with warnings_told():
        adapter = load_authors_adapter(model, asked.folder, asked.backend)
    adapter.save(asked.out)
    written = {
        "folder": asked.folder,
        "base": named,
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


def _check_out(folder: str, out: str, force: bool) -> None:
    """Looks at the place where the two files will be written.

    Raises:
        GPartError: if OUT names none, an adapter is there and is not to be written over, or it is what is read.
    """
    check_named(out)
    place = written_place(out)
    if not force and (there := [name for name in (CONFIG, TENSORS) if is_file(inside(place, name))]):
        raise GPartError(f"{place} holds {there[0]} already: --force writes over it")
    read = adapter_place(folder)
    if place == read or (isinstance(place, Path) and isinstance(read, Path) and place.resolve() == read.resolve()):
        raise GPartError(f"OUT {out} would write over {folder}, which is read: give another folder")


def _base(folder: str) -> str:
    """The base that their folder names."""
    found = base_of_authors(folder)
    if found is None or found.startswith(PYTHON):  # a file does not say which code is run
        raise GPartError(f"{folder} names no base to load, its base_model_name_or_path is {found!r}: say --base")
    return found


def _parser() -> Parser:
    parser = Parser(prog="gpart import", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="adapter_config.json and adapter_model.safetensors of theirs")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="the model that it was trained on, as for gpart merge; default: the base_model_name_or_path of FOLDER",
    )
    parser.add_argument(
        "--backend",
        choices=["stateless", "materialized"],
        help="the map that it was trained with, where FOLDER names none: materialized, if it was written from 2026-06-08 on",
    )
    parser.add_argument(
        "--model-class",
        metavar="CLASS",
        help="Transformers' class for the base; default: the one that has the adapter's heads",
    )
    parser.add_argument("--force", action="store_true", help="write over an adapter in OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
