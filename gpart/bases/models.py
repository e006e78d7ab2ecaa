"""Loading the base model that an adapter was trained on, by the name that a user has for it.

Invariant: what is loaded has the adapter's weights and heads under their names and in their shapes, or it is an error
that names what lacks. No code of a model's repository is run; ``python:MODULE:FUNCTION`` runs the user's own function.

================== ===============================================================================================
a name             what it means
================== ===============================================================================================
``FOLDER``         Transformers' folder (``config.json``), or timm's (its ``config.json`` names an ``architecture``)
``user/model``     Transformers' name on the hub
``packaged:NAME``  one of ``gpart.packaged``
``timm:NAME``      timm's model of this name, ``timm:hf-hub:NAME``, or ``timm:FOLDER``
``python:M:F``     what the function F of the module M returns: an ``nn.Module`` with its weights
================== ===============================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from gpart.assets.fetching import gguf, loading, resolve
from gpart.bases.current_folder import look_in_current_folder
from gpart.bases.fitting import RETURN_IT, Needs, choose, head_size
from gpart.errors import GPartError, GPartFileError
from gpart.injection.facts import PROBLEM_TYPES
from gpart.serialization.about import About
from gpart.serialization.folder import AUTHORS, BASE, CONFIG, TENSORS, config_of
from gpart.serialization.manifest import Manifest

TIMM, PYTHON = "timm:", "python:"
WEIGHTS = "model.safetensors"

DTypeSetting = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[DTypeSetting, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What a base can be loaded in; ``"auto"`` is what its files hold."""


@dataclass(frozen=True)
class Base:
    """A base model that was loaded."""

    model: nn.Module
    """In evaluation mode, on the CPU."""

    kind: Literal["transformers", "timm", "python"]
    """Who made it, and so how it is written and loaded again."""

    name: str
    """As the user gave it."""

    place: str
    """The folder, or the name on the hub, or timm's name, without the prefix."""


def load_base(
    name: str,
    manifest: Manifest | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: DTypeSetting = "auto",
    model_class: str | None = None,
) -> Base:
    """Loads a base model, as the class that an adapter fits.

    Args:
        name: see the table above.
        manifest: the adapter's, from :func:`gpart.serialization.sources.read_adapter`. None: the class that
            ``config.json`` names.
        tensors: the adapter's; heads among them say how many classes there are.
        dtype: of the weights.
        model_class: the name of a class of Transformers, where several fit or none does.

    Returns:
        The base, without the adapter.

    Raises:
        GPartFileError: if there is no such model.
        GPartError: if it can't be read, or has no place for the adapter.
    """
    if dtype not in DTYPES:
        raise GPartError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    needs = None if manifest is None else Needs.of(manifest, tensors or {})
    kind, place = _kind(name)
    if model_class is not None and kind != "transformers":
        raise GPartError(f"--model-class {model_class} is for Transformers' models; {name!r} is {kind}'s")
    if kind == "python":
        model = _called(place)
    elif kind == "timm":
        model = _timm(place, needs)
    else:
        model = _transformers(name, needs, DTYPES[dtype], model_class)
    if kind != "transformers" and (wanted := DTYPES[dtype]) is not None:
        model = model.to(wanted)
    if needs is not None and (lacking := needs.lacking(model)):
        if near := needs.near(model):
            lacking.append(f"{near}. {'Let the function return what was adapted' if kind == 'python' else RETURN_IT}")
        raise GPartError(f"base {name!r}, a {type(model).__name__}, is not this adapter's: {'; '.join(lacking)}")
    return Base(model.eval(), kind, name, place)


def named_base(manifest: Manifest, source: str) -> str:
    """The name that an adapter's manifest has for its base.

    Raises:
        GPartError: if it has none, as files from before 0.2 and those of models that do not know their own name; or if
            it names a function, since a file does not say which code is run.
    """
    if manifest.about.base is None:
        kind = manifest.about.model_class or "a model"
        raise GPartError(
            f"{source} does not say which base it was trained on ({kind} with fingerprint {manifest.base[:16]}...): give the"
            " base's folder or name"
        )
    if manifest.about.base.startswith(PYTHON):
        raise GPartError(
            f"{source} names the base {manifest.about.base!r}, which would run that function: give it as the base yourself if"
            " that is meant"
        )
    return manifest.about.base


def base_of(
    source: str, manifest: Manifest, tensors: Mapping[str, Tensor], name: str | None = None, **settings: Any
) -> Base:
    """The base of an adapter, with the adapter's names for the classes.

    Args:
        source: the adapter, for messages.
        manifest: the adapter's.
        tensors: the adapter's.
        name: the base's name; default as the manifest has it.
        settings: as for :func:`load_base`.

    Raises:
        GPartFileError: if it is not there.
        GPartError: if the adapter names none, or it has no place for the adapter.
    """
    wanted = named_base(manifest, source) if name is None else name
    try:
        base = load_base(wanted, manifest, tensors, **settings)
    except GPartError as error:
        if name is not None:
            raise
        raise type(error)(
            f"{source} was trained on {wanted!r}, which it names, and that cannot be loaded here: {error}. Give the base's"
            " folder or name where it is another one here"
        ) from error
    name_classes(base.model, manifest.about)
    return base


def name_classes(model: nn.Module, about: About) -> None:
    """Gives a model of Transformers an adapter's names for its classes, and its kind of task, which pipelines go by."""
    config: Any = getattr(model, "config", None)
    labels = about.labels
    if about.task in PROBLEM_TYPES and config is not None:
        config.problem_type = PROBLEM_TYPES[about.task]
    if labels and getattr(config, "num_labels", None) == len(labels):
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}


def load_again(base: Base, folder: Path) -> nn.Module:
    """The model that :func:`gpart.cli.written.write_model` wrote, by its own library and in the dtype of its files."""
    dtype = next(base.model.parameters()).dtype
    if base.kind == "timm":
        return _timm(str(folder), None).to(dtype).eval()
    if base.kind == "python":
        model = _called(base.place).to(dtype)
        load_model(model, folder / WEIGHTS)
        return model.eval()
    with quiet():
        again: nn.Module = type(base.model).from_pretrained(folder, dtype="auto")  # type: ignore[attr-defined]  # Transformers'
    return again.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Within it Transformers shows no progress, and no list of the heads that it draws: they are filled, or refused."""
    from transformers.utils import logging  # noqa: PLC0415

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _kind(name: str) -> tuple[Literal["transformers", "timm", "python"], str]:
    if name.startswith(PYTHON):
        return "python", name[len(PYTHON) :]
    if name.startswith(TIMM):
        return "timm", name[len(TIMM) :]
    return ("timm" if _is_timm(Path(name)) else "transformers"), name


def _is_timm(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def _transformers(name: str, needs: Needs | None, dtype: torch.dtype | None, model_class: str | None) -> nn.Module:
    import transformers  # noqa: PLC0415  # seconds, and only its models need it

    if (
        not name.startswith("packaged:")
        and not name.endswith(".gguf")
        and _looks_local(name)
        and not Path(name).exists()
    ):
        raise GPartFileError(f"there is no model {name!r}: no such folder")
    with quiet():
        with loading(name) as found:
            place, file = gguf(found)
            config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **file)
        chosen, labels = choose(config, needs, model_class, name)
        more: dict[str, Any] = {**file, "dtype": dtype or ("auto" if not file else torch.float32)}
        if file and hasattr(transformers, "GgufConfig"):  # only releases that can keep the file's blocks have it
            more["quantization_config"] = transformers.GgufConfig(dequantize=True)
        if labels is not None:
            # The head in the base's file, if any, may have another size: the adapter's own takes its place.
            more |= {"num_labels": labels, "ignore_mismatched_sizes": True}
        try:
            with loading(name):
                model: Any = chosen.from_pretrained(place, **more)
        except (GPartError, KeyError) as error:  # of PEFT's, by its release
            if _holds_gpart(place):
                raise GPartError(
                    f"base {name!r} holds an adapter of GPart beside its {BASE}, which Transformers takes for one of PEFT's:"
                    f" move {CONFIG} and {TENSORS} to a folder of their own"
                ) from error
            raise
        except (RuntimeError, ImportError) as error:  # weights of other shapes; a package that a packed base needs
            raise GPartError(f"base {name!r} can't be loaded as {chosen.__name__}: {error}") from error
    if file and getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config  # its weights are plain tensors now, and are saved as such
        model.is_quantized = False
    loaded: nn.Module = model
    return loaded


def _holds_gpart(folder: str) -> bool:
    """Whether an adapter of this package, or of the authors' code, lies in a model's folder itself."""
    try:
        return str(config_of(Path(folder))[1].get("peft_type")).startswith(AUTHORS)
    except (GPartError, OSError):
        return False


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)


def _timm(name: str, needs: Needs | None) -> nn.Module:
    import timm  # noqa: PLC0415  # 230 modules, and only its models need it

    from gpart.lightning_modules.vision.networks import build  # noqa: PLC0415  # its messages about timm's names

    place = resolve(name)
    plain: Any
    if not Path(place).is_dir() and ":" not in place and timm.is_model(place):
        plain = timm.create_model(place, pretrained=False)
    elif Path(place).is_dir() and _is_timm(Path(place)):
        plain = timm.create_model(f"local-dir:{place}", pretrained=False)
    elif place.startswith("hf-hub:"):
        plain = timm.create_model(place, pretrained=False)
    else:
        return build(f"{TIMM}{place}", 0)  # raises
    classes = head_size(plain, needs) if needs is not None else None
    return build(f"{TIMM}{place}", plain.num_classes if classes is None else classes)


def _called(place: str) -> nn.Module:
    """What ``MODULE:FUNCTION`` returns."""
    module, _, function = place.partition(":")
    if not module or not function:
        raise GPartError(f"'{PYTHON}{place}' must be {PYTHON}MODULE:FUNCTION, such as {PYTHON}my_project.models:build")
    look_in_current_folder()
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # one that the user's own module imports
        raise GPartFileError(
            f"'{PYTHON}{place}': there is no module {module!r} here or among the installed ones"
        ) from error
    if not callable(found):
        raise GPartError(f"'{PYTHON}{place}': the module {module} has no function {function!r}")
    model = found()
    if not isinstance(model, nn.Module):
        raise GPartError(f"'{PYTHON}{place}' must return an nn.Module, it returned a {type(model).__name__}")
    return model
