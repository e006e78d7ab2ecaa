"""How a model wants its pictures: size, crop, interpolation, mean and standard deviation.

Invariant: every number comes from the model's own image processor or timm's data config; nothing is guessed, and what
the transforms here can't do as the model's own would is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchvision.transforms.v2 import InterpolationMode
from transformers import AutoImageProcessor

from gpart.assets.fetching import resolve

TIMM = "timm:"

# PIL's numbers, which processors store as ``resample``.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Normalisation:
    """What a picture becomes before the model sees it."""

    size: tuple[int, int]
    """Height and width of the input, in pixels."""
    resize: int
    """For evaluation: the shorter side before the centre is cut out, in pixels."""
    mean: tuple[float, float, float]
    """Of red, green and blue, on a scale from 0 to 1."""
    std: tuple[float, float, float]
    """The same."""
    interpolation: str = "bilinear"
    """A value of torchvision's InterpolationMode."""

    def resized(self, image_size: int) -> Normalisation:
        """The same for a square input of another size; the border that is cut off keeps its proportion.

        Example:
            >>> Normalisation((224, 224), 256, (0.5,) * 3, (0.5,) * 3).resized(112).resize
            128
        """
        return replace(self, size=(image_size, image_size), resize=round(self.resize * image_size / max(self.size)))


def load_settings(model: str) -> Normalisation:
    """Reads a model's settings; no weights are fetched.

    Args:
        model: a name on the hub, a folder or ``packaged:NAME``, with an image processor; or ``timm:NAME``, where NAME
            is what ``timm.create_model`` takes (``hf-hub:`` and ``local-dir:`` too) or a folder that timm has saved.

    Raises:
        FileNotFoundError: if there is no such model, or it has no image processor.
        ValueError: if the processor lacks a size, mean or standard deviation, or does what can't be done here.
    """
    if model.startswith(TIMM):
        return _of_timm(model)
    try:
        processor = AutoImageProcessor.from_pretrained(resolve(model))  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no image processor of {model!r}, on the hub or as a folder: {error}") from error
    return of_processor(processor.to_dict(), model)


def of_processor(values: Mapping[str, Any], model: str) -> Normalisation:
    """The settings in an image processor's values.

    A processor with a height and width and no crop would squeeze every picture into that shape; here the shorter side
    is resized and the centre cut out instead, as in the paper's protocol.

    Args:
        values: what ``processor.to_dict()`` gives.
        model: its name, for messages.

    Raises:
        ValueError: if a value is missing or can't be done here, with the model's name and the value.

    Example:
        >>> values = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
        >>> of_processor({**values, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}, "a model").resize
        256
    """
    if values.get("do_flip_channel_order"):
        raise ValueError(f"the image processor of {model} wants blue, green, red (do_flip_channel_order), not RGB")
    scale = values.get("rescale_factor", 1 / 255)
    if not values.get("do_rescale", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise ValueError(
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
        raise ValueError(f"the image processor of {model} has resample={resample}; known are {_RESAMPLE}")
    return Normalisation(
        size,
        resize,
        _channels(values.get("image_mean") if normalise else (0.0,) * 3, "image_mean", model),
        _channels(values.get("image_std") if normalise else (1.0,) * 3, "image_std", model),
        _RESAMPLE[number],
    )


def _lengths(value: Any, name: str, model: str) -> tuple[int, tuple[int, int]]:
    """The shorter side to resize to, and height and width."""
    if isinstance(value, int):
        return value, (value, value)
    if isinstance(value, Mapping):
        if value.get("height") and value.get("width"):
            height, width = int(value["height"]), int(value["width"])
            return max(height, width), (height, width)  # so that the cut-out lies within the picture
        if value.get("shortest_edge"):
            edge = int(value["shortest_edge"])
            return edge, (edge, edge)
    raise ValueError(
        f"the image processor of {model} has {name}={value}; needed are height and width, or shortest_edge"
    )


def _channels(value: Any, name: str, model: str) -> tuple[float, float, float]:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"the image processor of {model} has {name}={value}; needed are three numbers")
    return float(value[0]), float(value[1]), float(value[2])


def _of_timm(model: str) -> Normalisation:
    from timm.data.config import resolve_data_config  # heavy, and only for timm's models

    config = resolve_data_config(pretrained_cfg=_timm_values(model))  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3:
        raise ValueError(f"{model} takes input_size={config['input_size']}; pictures have 3 channels here")
    # "random" is timm's for training; evaluation takes bilinear then, there too.
    name = "bilinear" if config["interpolation"] == "random" else config["interpolation"]
    return Normalisation(
        (height, width),
        math.floor(max(height, width) / config["crop_pct"]),
        _channels(config["mean"], "mean", model),
        _channels(config["std"], "std", model),
        InterpolationMode(name).value,
    )


def _timm_values(model: str) -> dict[str, Any]:
    """The pretrained config, from timm's registry, the hub or a folder."""
    import timm

    name = model.removeprefix(TIMM)
    folder = Path(name.removeprefix("local-dir:"))
    try:
        if name.startswith("hf-hub:"):
            return dict(timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))[0])
        if name.startswith("local-dir:") or folder.is_dir():
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return dict(values.get("pretrained_cfg", values))  # older files hold nothing else
        found = timm.get_pretrained_cfg(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise FileNotFoundError(f"timm has no model {name!r}: {error}") from error
    if found is None:
        raise FileNotFoundError(f"timm has no model {name!r}; timm.list_models() lists them")
    return dict(found.to_dict())  # type: ignore[no-untyped-call]
