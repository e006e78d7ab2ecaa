"""Hyperparameters: what a checkpoint can hold comes back, the rest is named with its place before it is lost."""

from __future__ import annotations

import enum
import io
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Tensor, nn

from gpart import load_adapter
from gpart.callbacks import load_from_checkpoint
from gpart.callbacks.checkpoints.hyperparameters import OBJECTS_KEY, loadable, with_objects
from gpart.errors import GPartError


class Colour(str, enum.Enum):  # noqa: UP042 - as it stands in many projects
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
    with pytest.raises(ValueError, match=rf"^checkpoint\['a'\]\[1\]\['b'\] is of type {full}$"):
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


class Attributes(dict):
    """A dict with attributes, as many projects have one."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


AS_GIVEN: dict[str, tuple[Any, Any]] = {
    "attributes": (Attributes(lr=0.5), lambda value: value.lr),
    "namedtuple": (Pair(1, 2), lambda value: value.b),
    "path": (Path("a"), lambda value: value / "b"),
    "array": (np.ones(3, np.float32), torch.from_numpy),
    "defaultdict": (defaultdict(int), lambda value: value["absent"]),
    "lightning's own": (AttributeDict(lr=0.5), lambda value: value.lr),
    "deep": ({"here": [Pair(Path("a"), 2)]}, lambda value: value["here"][0].a / "b"),
}


@pytest.mark.parametrize("kind", AS_GIVEN)
@pytest.mark.parametrize("written", ["adapter", "merged"])
def test_without_weights_only_a_hyperparameter_is_what_was_given(
    kind: str, written: str, lit_fitted: Any, lit_class: Any, lit_gpart: Any
) -> None:
    value, use = AS_GIVEN[kind]

    class Uses(lit_class):
        def __init__(self, extra: Any = None, lr: float = 0.01) -> None:
            super().__init__(extra=extra, lr=lr)
            use(extra)

    _, _, path = lit_fitted(Uses(value), lit_gpart(checkpoints=written))
    loaded = load_from_checkpoint(Uses, path, weights_only=False)
    assert type(loaded.hparams["extra"]) is type(value)
    with path.open("rb") as file:
        load_from_checkpoint(Uses, file, weights_only=False)
    where = r"checkpoint\['hyper_parameters'\]\['extra'\]"
    with pytest.warns(UserWarning, match=rf"without the types of .*{where}.*weights_only=False"):
        load_from_checkpoint(lit_class, path)


def test_a_rate_of_numpys_does_not_put_the_optimizers_state_into_the_file_twice() -> None:
    """Its plain equal serves; nor does an enum's member, which a str or an int equals."""
    state = {"state": {0: {"exp_avg": torch.ones(1000)}}, "param_groups": [{"lr": np.float64(0.5), "mode": Colour.RED}]}
    assert with_objects({"optimizer_states": [state]}) == loadable({"optimizer_states": [state]})
    made = with_objects({"optimizer_states": [state], "hyper_parameters": {"path": Path("a"), "lr": np.float64(0.5)}})
    assert [entry["place"] for entry in made[OBJECTS_KEY]] == [["hyper_parameters", "path"]]


def test_a_trainer_reads_what_was_given_too(
    lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Keeps(Callback):
        found: Any = None

        def state_dict(self) -> dict[str, Any]:
            return {"pair": Pair(1, 2)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            Keeps.found = state_dict["pair"]

    _, _, path = lit_fitted(None, None, Keeps())
    for weights_only, kind in ((None, tuple), (False, Pair)):
        lit_trainer(lit_gpart(), Keeps(), max_epochs=2).fit(
            lit_class(), lit_loader(), ckpt_path=path, weights_only=weights_only
        )
        assert type(Keeps.found) is kind


def test_a_class_that_is_gone_leaves_the_plain_value(lit_fitted: Any, lit_class: Any, monkeypatch: Any) -> None:
    _, _, path = lit_fitted(lit_class(extra=Pair(1, 2)))
    monkeypatch.delitem(globals(), "Pair")
    with pytest.warns(UserWarning, match=r"\['hyper_parameters', 'extra'\] is read as its plain equal"):
        loaded = load_from_checkpoint(lit_class, path, weights_only=False)
    assert loaded.hparams["extra"] == (1, 2)


def test_plain_values_leave_nothing_more_in_the_file(lit_fitted: Any, lit_class: Any) -> None:
    _, _, path = lit_fitted(lit_class(extra={"a": [1, (2.0,)]}))
    assert OBJECTS_KEY not in torch.load(path)


def test_lightning_leaves_a_lambda_out_with_its_own_warning(lit_fitted: Any, lit_class: Any) -> None:
    with pytest.warns(UserWarning, match="'extra' removed from hparams because it cannot be pickled"):
        _, _, path = lit_fitted(lit_class(extra=lambda: 1))
    assert "extra" not in torch.load(path, weights_only=True)["hyper_parameters"]


class Holder:
    """A project's own object, with an object in it."""

    def __init__(self) -> None:
        self.settings, self.network = Settings(0.3), nn.Linear(2, 2)


@pytest.mark.parametrize("value", [Mode.FAST, Settings(), Holder(), torch.optim.Adam, partial(torch.optim.SGD, lr=0.1)])
def test_objects_are_written_as_lightning_writes_them(value: Any, lit_fitted: Any, lit_class: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"checkpoint\['hyper_parameters'\]\['extra'\]\['here'\]\[0\] is of type"
    ) as said:
        module, _, path = lit_fitted(lit_class(extra={"here": [value], "path": Path("a/b")}))
    assert sum("weights_only=False" in str(one.message) for one in said) == 1
    adapter = load_adapter(lit_class().net, path)
    assert torch.equal(adapter.theta, module.net[0].gpart.default.theta)
    with pytest.raises(GPartError, match=r"it holds .*(test_hyperparameters|torch\.optim|functools)"):
        load_from_checkpoint(lit_class, path)
    found = load_from_checkpoint(lit_class, path, weights_only=False).hparams["extra"]
    assert type(found["here"][0]) is type(value)
    assert found["path"] == Path("a/b")


def test_fit_and_test_honour_weights_only(
    lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, _, path = lit_fitted(lit_class(extra=Holder()))
    for weights_only in (None, True):
        with pytest.raises(GPartError, match=r"holds .*test_hyperparameters\.Holder.*weights_only=False"):
            lit_trainer(lit_gpart()).test(lit_class(), lit_loader(), ckpt_path=path, weights_only=weights_only)
    fresh = lit_class()
    lit_trainer(lit_gpart()).test(fresh, lit_loader(), ckpt_path=path, weights_only=False, verbose=False)
    assert torch.equal(fresh.net[0].gpart.default.theta, module.net[0].gpart.default.theta)


def test_a_callbacks_object_is_written_too(lit_fitted: Any, lit_class: Any) -> None:
    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"settings": Settings()}

    _, _, path = lit_fitted(None, None, Keeps())
    (found,) = [state for key, state in torch.load(path, weights_only=False)["callbacks"].items() if "Keeps" in key]
    assert found == {"settings": Settings()}
    load_adapter(lit_class().net, path)


def test_without_checkpoints_any_value_is_fine(
    lit_class: Any, lit_trainer: Any, lit_gpart: Any, lit_loader: Any
) -> None:
    callback = lit_gpart()
    trainer = lit_trainer(callback)
    trainer.fit(lit_class(extra=Settings()), lit_loader())
    assert callback.adapter.theta.count_nonzero() > 0
