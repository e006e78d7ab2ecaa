"""How a model expects its pictures: size, crop, interpolation, mean and standard deviation.

Invariant: every value comes from the model's own image processor or from timm's data config; none is guessed. A setting
that the transforms here can't reproduce is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torchvision.transforms.v2 import InterpolationMode
from transformers import AutoImageProcessor
from transformers.utils.hub import cached_file

from gpart.assets.fetching import resolve
from gpart.assets.hub_reason import hub_reason, is_unanswered
from gpart.errors import GPartError, GPartFileError

TIMM = "timm:"

# PIL's numbers for interpolation, which image processors store as ``resample``.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Normalisation:
    """How a picture is resized and normalised for a model."""

    size: tuple[int, int]
    """The height and width of the model's input, in pixels."""
    resize: int
    """For evaluation: the length that the shorter side is resized to before the centre is cut out, in pixels."""
    mean: tuple[float, float, float]
    """The mean of red, green and blue, on a scale from 0 to 1."""
    std: tuple[float, float, float]
    """The standard deviation of red, green and blue, on the same scale."""
    interpolation: str = "bilinear"
    """A value of torchvision's InterpolationMode."""

    def resized(self, image_size: int) -> Normalisation:
        """Returns the settings for a square input of another size. The border that is cut off keeps its proportion.

        Example:
            >>> Normalisation((224, 224), 256, (0.5,) * 3, (0.5,) * 3).resized(112).resize
            128
        """
        return replace(self, size=(image_size, image_size), resize=round(self.resize * image_size / max(self.size)))


def load_settings(model: str) -> Normalisation:
    """Reads a model's settings, without downloading its weights.

    Args:
        model: a name on the hub, a folder or ``packaged:NAME``, with an image processor; or ``timm:NAME``, where NAME
            is what ``timm.create_model`` takes (also ``hf-hub:`` and ``local-dir:``) or a folder that timm has saved.

    Raises:
        GPartFileError: if there is no such model, or it has no image processor.
        GPartError: if the image processor lacks a size, a mean or a standard deviation, or has a setting that the
            transforms here can't reproduce.
    """
    if model.startswith(TIMM):
        return _of_timm(model)
    place = resolve(model)
    try:
        _ask(place)
        processor = AutoImageProcessor.from_pretrained(place)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise GPartFileError(
            f"no image processor of {model!r}, on the hub or as a folder: {hub_reason(model, error)}"
        ) from error
    return of_processor(processor.to_dict(), model)


def _ask(place: str) -> None:
    """Fails if the hub is not there: Transformers would look for five files, half a minute each, and not say why."""
    try:
        cached_file(place, "preprocessor_config.json")
    except OSError as error:
        if is_unanswered(error):
            raise


def of_processor(values: Mapping[str, Any], model: str) -> Normalisation:
    """Reads the settings from an image processor's values.

    A processor with a height and a width but no crop would squeeze every picture into that shape. Here, the shorter
    side is resized and the centre is cut out instead, as in the paper's protocol.

    Args:
        values: the result of ``processor.to_dict()``.
        model: the model's name, for messages.

    Raises:
        GPartError: if a value is missing, or is one that the transforms here can't reproduce.

    Example:
        >>> values = {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 56, "width": 56}}
        >>> of_processor({**values, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}, "a model").resize
        64
    """
    if values.get("do_flip_channel_order"):
        raise GPartError(f"the image processor of {model} wants blue, green, red (do_flip_channel_order), not RGB")
    scale = values.get("rescale_factor", 1 / 255)
    if not values.get("do_rescale", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise GPartError(
            f"the image processor of {model} has rescale_factor={scale}; pictures are scaled by 1/255 here"
        )
    resize, size = _lengths(values.get("size"), "size", model)
    if values.get("do_center_crop"):
        _, size = _lengths(values.get("crop_size"), "crop_size", model)
    elif values.get("crop_pct") and resize < 384:  # ConvNeXt's rule
        resize = int(resize / values["crop_pct"])
    normalise = values.get("do_normalize", True)
    resample = values.get("resample")
    number = 2 if resample is None else int(resample)
    if number not in _RESAMPLE:
        raise GPartError(f"the image processor of {model} has resample={resample}; known are {_RESAMPLE}")
    return Normalisation(
        size,
        resize,
        _channels(values.get("image_mean") if normalise else (0.0,) * 3, "image_mean", model),
        _channels(values.get("image_std") if normalise else (1.0,) * 3, "image_std", model),
        _RESAMPLE[number],
    )


def of_inputs(inputs: Mapping[str, Any]) -> Normalisation | None:
    """The settings that stand in an adapter's file; None where they are not all there.

    Raises:
        GPartError: if one is not what it has to be.

    Example:
        >>> of_inputs({"max_length": 128}) is None
        True
        >>> values = {"size": [32, 32], "resize": 36, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
        >>> of_inputs(values).size
        (32, 32)
    """
    if any(one.name not in inputs for one in fields(Normalisation)):
        return None
    try:
        height, width = map(int, inputs["size"])
        return Normalisation(
            (height, width),
            int(inputs["resize"]),
            _channels(inputs["mean"], "mean", "the adapter"),
            _channels(inputs["std"], "std", "the adapter"),
            InterpolationMode(inputs["interpolation"]).value,
        )
    except (TypeError, ValueError) as error:
        raise GPartError(f"the adapter's file has no settings of pictures in inputs={dict(inputs)}: {error}") from error


def _lengths(value: Any, name: str, model: str) -> tuple[int, tuple[int, int]]:
    """Returns the length that the shorter side is resized to, and the height and width of the result."""
    if isinstance(value, int):
        return value, (value, value)
    if isinstance(value, Mapping):
        if value.get("height") and value.get("width"):
            height, width = int(value["height"]), int(value["width"])
            return max(height, width), (height, width)  # the maximum, so that the crop lies within the picture
        if value.get("shortest_edge"):
            edge = int(value["shortest_edge"])
            return edge, (edge, edge)
    raise GPartError(
        f"the image processor of {model} has {name}={value}; needed are height and width, or shortest_edge"
    )


def _channels(value: Any, name: str, model: str) -> tuple[float, float, float]:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise GPartError(f"the image processor of {model} has {name}={value}; needed are three numbers")
    return float(value[0]), float(value[1]), float(value[2])


def _of_timm(model: str) -> Normalisation:
    from timm.data.config import resolve_data_config  # noqa: PLC0415  # timm: 230 modules that most runs do without

    config = resolve_data_config(pretrained_cfg=_timm_values(model))  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3:
        raise GPartError(f"{model} takes input_size={config['input_size']}; pictures have 3 channels here")
    # "random" is meant for training. timm itself evaluates such models with bilinear interpolation.
    name = "bilinear" if config["interpolation"] == "random" else config["interpolation"]
    known = [mode.value for mode in InterpolationMode]
    if name not in known:
        raise GPartError(f"{model} has interpolation={name!r}; known are {known}")
    return Normalisation(
        (height, width),
        math.floor(max(height, width) / config["crop_pct"]),
        _channels(config["mean"], "mean", model),
        _channels(config["std"], "std", model),
        InterpolationMode(name).value,
    )


def _timm_values(model: str) -> dict[str, Any]:
    """Reads a model's pretrained config from timm's registry, from the hub or from a folder."""
    import timm  # noqa: PLC0415  # 230 modules that most runs do without

    name = model.removeprefix(TIMM)
    folder = Path(name.removeprefix("local-dir:"))
    try:
        if name.startswith("hf-hub:"):
            return dict(timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))[0])
        if name.startswith("local-dir:") or folder.is_dir():
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise GPartError(f"its config.json holds {type(values).__name__}, expected an object")
            return dict(values.get("pretrained_cfg", values))  # older files hold the pretrained config alone
        found = timm.get_pretrained_cfg(name)
    except (OSError, RuntimeError) as error:  # timm raises a RuntimeError for an unknown name
        why = hub_reason(name.removeprefix("hf-hub:"), error)
        raise GPartFileError(f"timm has no model {name!r}: {why}") from error
    except ValueError as error:
        raise GPartError(f"timm's config of model {name!r} can't be read: {error}") from error
    if found is None:
        raise GPartFileError(f"timm has no model {name!r}; timm.list_models() lists them")
    return dict(found.to_dict())  # type: ignore[no-untyped-call]
