"""A model's picture settings: from processors of Transformers, as its own transforms have them, and from timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from gpart.datamodules.vision.reading import evaluation_transform
from gpart.datamodules.vision.settings import Normalisation, load_settings, of_processor
from gpart.errors import GPartError, GPartFileError

PLAIN = {
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.1, 0.2, 0.3],
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ((224, 224), 224, "bilinear")),
        ({"size": {"height": 224, "width": 320}}, ((224, 320), 320, "bilinear")),
        ({"size": 96, "resample": 3}, ((96, 96), 96, "bicubic")),
        ({"size": {"shortest_edge": 256}, "resample": 0}, ((256, 256), 256, "nearest")),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            ((224, 224), 256, "bilinear"),
        ),
        # A crop size that is not used, as EfficientNet's.
        ({"do_center_crop": False, "crop_size": {"height": 100, "width": 100}}, ((224, 224), 224, "bilinear")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, ((224, 224), 256, "bilinear")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, ((384, 384), 384, "bilinear")),
        ({"resample": None}, ((224, 224), 224, "bilinear")),
    ],
)
def test_a_processors_values(values: dict[str, Any], expected: tuple[Any, int, str]) -> None:
    found = of_processor({**PLAIN, **values}, "a model")
    assert (found.size, found.resize, found.interpolation) == expected
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def test_a_processor_that_does_not_normalise() -> None:
    found = of_processor({**PLAIN, "do_normalize": False, "image_mean": None}, "a model")
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": None}, "of a model has size=None; needed are height and width, or shortest_edge"),
        ({"size": {"longest_edge": 500}}, "size={'longest_edge': 500}"),
        ({"do_center_crop": True}, "crop_size=None"),
        ({"image_mean": None}, "image_mean=None; needed are three numbers"),
        ({"image_std": [0.5]}, "image_std=.0.5.; needed are three"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078"),
        ({"do_rescale": False}, "rescale_factor"),
        ({"resample": 9}, "resample=9"),
    ],
)
def test_what_a_processor_lacks_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        of_processor({**PLAIN, **values}, "a model")


@pytest.mark.parametrize(
    "processor",
    [
        BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2),
        ConvNextImageProcessor(size={"shortest_edge": 35}, crop_pct=0.875),
    ],
)
def test_evaluation_is_what_the_processor_does(processor: Any, tmp_path: Path) -> None:
    """On a smooth picture, wider than high: within a grey value and a half of Transformers' own."""
    processor.save_pretrained(tmp_path)
    rows, columns = np.mgrid[0:90, 0:130]
    pixels = np.stack([rows * 2, columns, (rows + columns)], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    settings = load_settings(str(tmp_path))
    ours = evaluation_transform(settings)(image)
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() * torch.tensor(settings.std)[:, None, None]).max() < 1.6 / 255


def test_a_processor_that_squeezes_is_taken_to_cut() -> None:
    """The paper's protocol; ViT's own processor would squeeze a wide picture into a square."""
    found = of_processor(ViTImageProcessor().to_dict(), "google/vit-base-patch16-224-in21k")
    half = (0.5, 0.5, 0.5)
    assert found == Normalisation((224, 224), 224, half, half, "bilinear")


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224", "resnet18.a1_in1k", "deit_tiny_patch16_224"]
)
def test_timms_own_config(name: str) -> None:
    config = resolve_model_data_config(timm.create_model(name, pretrained=False))
    found = load_settings(f"timm:{name}")
    assert found.size == config["input_size"][1:]
    assert (found.mean, found.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert found.interpolation == config["interpolation"]
    resize, crop = create_transform(**config, is_training=False).transforms[:2]
    assert (found.resize, found.size) == (resize.size, tuple(crop.size))


@pytest.mark.parametrize("prefix", ["timm:", "timm:local-dir:"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_folder_that_timm_has_saved(prefix: str, flat: bool, tmp_path: Path) -> None:
    own = {"input_size": [3, 96, 96], "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.5, "interpolation": "bilinear"}
    whole = {"architecture": "vit_tiny_patch16_224", **(own if flat else {"pretrained_cfg": own})}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    found = load_settings(f"{prefix}{tmp_path}")
    assert found == Normalisation((96, 96), 192, (0.1,) * 3, (0.2,) * 3, "bilinear")


@pytest.mark.parametrize("name", ["no_such_model", "vit_tiny_patch16_224.no_such_tag", "hf-hub:nobody/nothing"])
def test_no_model_of_timm_is_named(name: str) -> None:
    with pytest.raises(GPartFileError, match=f"timm has no model '{name}'"):
        load_settings(f"timm:{name}")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{not", "timm's config of model .* can't be read: Expecting property name"),
        ("[]", "can't be read: its config.json holds list, expected an object"),
        ('{"pretrained_cfg": {"interpolation": "none"}}', "has interpolation='none'; known are .*'bilinear'"),
    ],
)
def test_a_damaged_config_of_timm_is_named(config: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(GPartError, match=said) as caught:
        load_settings(f"timm:{tmp_path}")
    assert not isinstance(caught.value, GPartFileError)  # it is there


def test_a_model_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [1, 28, 28]}}))
    with pytest.raises(GPartError, match=r"input_size=\[1, 28, 28\]; pictures have 3"):
        load_settings(f"timm:{tmp_path}")


def test_another_size_keeps_the_proportion_of_the_border() -> None:
    found = Normalisation((224, 224), 256, (0.5,) * 3, (0.5,) * 3).resized(448)
    assert (found.size, found.resize) == ((448, 448), 512)
