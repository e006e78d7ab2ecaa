"""What a command takes from the adapter that it scores or predicts with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpart import GPartConfig, attach
from gpart.cli.adapter_settings import take_settings
from gpart.serialization.about import About


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Makes an adapter's folder that says these facts, and returns it."""

    def make(about: About) -> str:
        adapter = attach(torch.nn.Linear(4, 4), GPartConfig(d=2, target_modules=".*"))
        adapter.about = replace(about)
        adapter.save(tmp_path / "adapter")
        return str(tmp_path / "adapter")

    return make


def settings(adapter: str | None, **data: Any) -> dict[str, Any]:
    model = {"labels": None, "num_labels": None, "problem_type": None}
    return {
        "method": {"init_args": {"adapter": adapter}},
        "model": {"init_args": model},
        "data": {"init_args": data},
    }


def test_sizes_of_inputs_are_the_adapters_unless_the_command_line_says_them(folder: Any) -> None:
    adapter = folder(About(inputs={"size": [56, 56], "max_length": 77, "mean": [0.5]}))
    config = settings(adapter, image_size=None, max_length=128, seed=1)
    take_settings(config, ["predict", "--data.path=new"])
    assert config["data"]["init_args"] == {"image_size": 56, "max_length": 77, "seed": 1}
    for word in ("--data.image_size=64", "--data.init_args.image_size=64"):
        config = settings(adapter, image_size=64, max_length=128)
        take_settings(config, ["predict", word])
        assert config["data"]["init_args"] == {"image_size": 64, "max_length": 77}


@pytest.mark.parametrize("inputs", [{}, {"size": [56, 48]}, {"size": [], "max_length": "77"}, {"image_size": True}])
def test_what_is_no_size_is_left_alone(folder: Any, inputs: dict[str, Any]) -> None:
    config = settings(folder(About(inputs=inputs)), image_size=None, max_length=128)
    take_settings(config, [])
    assert config["data"]["init_args"] == {"image_size": None, "max_length": 128}


def test_data_without_these_settings_get_none(folder: Any) -> None:
    config = settings(folder(About(inputs={"max_length": 77})), path="x")
    take_settings(config, [])
    assert config["data"]["init_args"] == {"path": "x"}
    del config["data"]
    take_settings(config, [])


def test_classes_are_the_adapters(folder: Any) -> None:
    adapter = folder(About(task="multi-label", labels=["b", "a"]))
    config = settings(adapter)
    take_settings(config, [])
    expected = {"labels": ["b", "a"], "num_labels": 2, "problem_type": "multi_label_classification"}
    assert config["model"]["init_args"] == expected
    config["model"]["init_args"]["labels"] = ["a", "b"]  # refused by the callback, which sees what is in use
    take_settings(config, [])
    assert config["model"]["init_args"]["labels"] == ["a", "b"]


def test_without_an_adapter_nothing_is_taken() -> None:
    config = settings(None, image_size=None)
    take_settings(config, [])
    assert config == settings(None, image_size=None)
