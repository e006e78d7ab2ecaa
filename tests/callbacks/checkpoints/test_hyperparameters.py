"""Hyperparameters: what a checkpoint can hold comes back, the rest is named with its place before it is lost."""

from __future__ import annotations

import enum
import io
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Tensor, nn

from gpart.callbacks import load_from_checkpoint
from gpart.callbacks.checkpoints.hyperparameters import loadable


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Mode(enum.Enum):
    FAST = "fast"


@dataclass
class Settings:
    lr: float = 0.1


class Text(str):
    __slots__ = ()


class Marked(Tensor):
    """Any subclass of Tensor, such as torchvision's Image."""


Pair = namedtuple("Pair", "a b")  # noqa: PYI024  # the kind that code has that a checkpoint meets

SAME = [None, True, -3, 2**70, 0.5, 1j, "text", b"bytes", [1, [2]], (1, (2,)), {1, 2}, {"a": {1: (None,)}}]
SAME += [torch.float16, torch.device("cpu"), torch.Size([2, 3]), OrderedDict(a=1), Counter("aab"), {(1, "a"): 2}]
CONVERTED = [
    (Path("a/b"), "a/b"),
    (PurePosixPath("/c"), "/c"),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.str_("text"), "text"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Text("text"), "text"),
    (defaultdict(list, a=[1]), {"a": [1]}),
    (AttributeDict(lr=np.float64(0.1)), {"lr": 0.1}),
    (Pair(1, Path("p")), (1, "p")),
    ({Path("key"): [{"deep": np.int8(1)}]}, {"key": [{"deep": 1}]}),
    ({np.int64(4): 1, Colour.RED: 2}, {4: 1, "red": 2}),
]


def read_back(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("value", SAME, ids=repr)
def test_plain_values_stay_as_they_are(value: Any) -> None:
    found = read_back(loadable(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("value", "plain"), CONVERTED, ids=lambda value: type(value).__name__)
def test_harmless_values_come_back_as_plain_ones(value: Any, plain: Any) -> None:
    found = read_back(loadable(value))
    assert found == plain
    assert type(found) is type(plain)
    for key in found if isinstance(found, dict) else ():
        assert type(key) in (str, int)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
def test_numpy_arrays_come_back_as_tensors_of_their_own(dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)[:, ::-1]
    made = loadable({"array": array})["array"]
    kept = array.copy()
    array[...] = 0
    assert made.numpy().dtype == dtype
    assert np.array_equal(read_back(made).numpy(), kept)


def test_tensors_are_passed_on_and_lose_their_subclass() -> None:
    plain, parameter = torch.randn(2), nn.Parameter(torch.randn(2))
    assert loadable([plain])[0] is plain
    assert loadable([parameter])[0] is parameter
    marked = plain.as_subclass(Marked)
    assert type(marked) is Marked
    found = read_back(loadable(marked))
    assert type(found) is Tensor
    assert torch.equal(found, plain)


REFUSED = {
    "Enum": Mode.FAST,
    "dataclass": Settings(),
    "lambda": lambda: 1,
    "function": print,
    "class": Settings,
    "object": object(),
    "module": nn.Linear(1, 1),
    "namespace": Namespace(a=1),
    "array of objects": np.array([Settings()], dtype=object),
    "array of text": np.array(["a"]),
    "array with a mask": np.ma.array([1, 2], mask=[0, 1]),
    "array of another byte order": np.arange(3, dtype=">i4" if np.little_endian else "<i4"),
    "longdouble": np.longdouble(1),
    "array of longdouble": np.ones(2, np.longdouble),
    "frozenset": frozenset([1]),
    "bytearray": bytearray(b"a"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_plain_equal_is_named_with_its_place(kind: str) -> None:
    value = REFUSED[kind]
    if np.longdouble is np.float64 and "longdouble" in kind:
        pytest.skip("here a longdouble is a float64")
    full = rf"{type(value).__module__}\.{type(value).__qualname__}"
    with pytest.raises(ValueError, match=rf"^checkpoint\['a'\]\[1\]\['b'\] is of type {full}, .*weights_only=True"):
        loadable({"a": [0, {"b": value}]})


def test_a_numpy_value_whose_python_value_is_no_plain_one_is_named() -> None:
    with pytest.raises(ValueError, match=r"checkpoint\['day'\] is of type datetime\.date"):
        loadable({"day": np.datetime64("2020-01-01")})


def test_a_refused_key_is_named_too() -> None:
    with pytest.raises(ValueError, match=r"a key of checkpoint\['a'\] is of type .*Mode"):
        loadable({"a": {Mode.FAST: 1}})


def test_what_the_user_allowed_to_torch_is_kept() -> None:
    with pytest.raises(ValueError, match="Settings"):
        loadable(Settings())
    with torch.serialization.safe_globals([Settings]):
        assert read_back(loadable([Settings(0.2)])) == [Settings(0.2)]


def test_a_checkpoint_brings_converted_hyperparameters_to_the_class(lit_fitted: Any, lit_class: Any) -> None:
    extra = {"path": Path("a/b"), "lr": np.float32(0.5), "deep": [{"w": np.arange(3), "colour": Colour.RED}]}
    _, _, path = lit_fitted(lit_class(extra=extra, lr=np.float64(0.02)))
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    assert stored["lr"] == 0.02
    loaded = load_from_checkpoint(lit_class, path)
    found = loaded.hparams["extra"]
    assert found["path"] == "a/b"
    assert found["lr"] == 0.5
    assert found["deep"][0]["colour"] == "red"
    assert torch.equal(found["deep"][0]["w"], torch.arange(3))
    assert loaded.lr == 0.02


def test_lightning_leaves_a_lambda_out_with_its_own_warning(lit_fitted: Any, lit_class: Any) -> None:
    with pytest.warns(UserWarning, match="'extra' removed from hparams because it cannot be pickled"):
        _, _, path = lit_fitted(lit_class(extra=lambda: 1))
    assert "extra" not in torch.load(path, weights_only=True)["hyper_parameters"]


@pytest.mark.parametrize("kind", ["Enum", "dataclass", "object"])
def test_others_are_named_before_the_first_step(kind: str, lit_fitted: Any, lit_class: Any) -> None:
    seen: list[int] = []

    class Counts(lit_class):
        def on_train_batch_start(self, batch: Any, index: int) -> None:
            seen.append(index)

    with pytest.raises(ValueError, match=r"checkpoint\['hyper_parameters'\]\['extra'\]\['here'\]\[0\] is of type"):
        lit_fitted(Counts(extra={"here": [REFUSED[kind]]}))
    assert seen == []


def test_a_datamodules_are_named_as_well(lit_fitted: Any, lit_class: Any, lit_loader: Any, lit_gpart: Any) -> None:
    class Data(LightningDataModule):
        def __init__(self, settings: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return lit_loader()

    _, trainer, _ = lit_fitted()
    with pytest.raises(ValueError, match=r"\['datamodule_hyper_parameters'\]\['settings'\] is of type .*Settings"):
        trainer.fit(lit_class(), datamodule=Data(Settings()))


def test_without_checkpoints_any_value_is_fine(
    lit_class: Any, lit_trainer: Any, lit_gpart: Any, lit_loader: Any
) -> None:
    callback = lit_gpart()
    trainer = lit_trainer(callback)
    trainer.fit(lit_class(extra=Settings()), lit_loader())
    assert callback.adapter.theta.count_nonzero() > 0


def test_a_callbacks_state_is_named_when_saving(lit_fitted: Any, tmp_path: Path) -> None:
    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"settings": Settings()}

    with pytest.raises(ValueError, match=r"\['callbacks'\]\['.*Keeps'\]\['settings'\] is of type .*Settings"):
        lit_fitted(None, None, Keeps())
    assert not list(tmp_path.rglob("*.ckpt"))
