"""What a project writes into its weights before the first step: it is W0, as without the callback."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gpart.callbacks import GPartCallback


def _data(layer: nn.Linear) -> None:
    layer.weight.data.copy_(torch.full((16, 8), 0.25))  # as loaders of npz and darknet files do


def _copy(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.full((16, 8), 0.25))


def _reset(layer: nn.Linear) -> None:
    torch.manual_seed(5)
    layer.reset_parameters()


WRITES: dict[str, Callable[[nn.Linear], object]] = {
    "init": lambda layer: nn.init.constant_(layer.weight, 0.25),
    "data": _data,
    "copy": _copy,
    "reset": _reset,
}


def project(lit_class: type, hook: str, write: Callable[[nn.Linear], object]) -> Any:
    """A module that writes into its first layer in one of its hooks."""

    def own(self: Any, **_: Any) -> None:
        write(self.net[0])

    return type("Writes", (lit_class,), {hook: own})()


@pytest.mark.parametrize("hook", ["setup", "configure_model", "on_fit_start"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_it_is_the_base(
    hook: str, write: Callable[[nn.Linear], object], lit_class: type, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    plain = project(lit_class, hook, write)
    lit_trainer(max_epochs=0).fit(plain, lit_loader())
    written, method = project(lit_class, hook, write), lit_gpart()
    lit_trainer(method).fit(written, lit_loader(), lit_loader())
    base = method.adapter.base_parameters()["0.weight"]
    assert base.equal(plain.net[0].weight)
    assert not base.equal(lit_class().net[0].weight)
    assert method.adapter.theta.count_nonzero() == 10
    assert not method.adapter.weights.disabled  # the sum again
    assert written.net[0].weight.equal(base + method.adapter.delta("0.weight"))


def test_an_adapter_that_was_trained_stays_in_the_weights(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Any
) -> None:
    lit_trainer(first := lit_gpart()).fit(lit_class(), lit_loader())
    first.adapter.save(tmp_path)
    seen = []

    class Reads(lit_class):
        def setup(self, stage: str) -> None:
            seen.append(self.net[0].weight.detach().clone())

    lit_trainer(GPartCallback(adapter=str(tmp_path))).test(Reads(), lit_loader(), verbose=False)
    (weight,) = first.adapter.merged_weights().values()
    assert seen[0].equal(weight)


def test_a_project_may_call_its_own_hook_by_position(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Calls(lit_class):
        def setup(self, stage: str) -> str:
            return stage

        def configure_model(self) -> None:
            self.found = self.setup("fit")

    lit_trainer(lit_gpart()).fit(module := Calls(), lit_loader())
    assert module.found == "fit"


@pytest.mark.parametrize("hook", ["setup", "configure_model", "on_fit_start"])
def test_a_copy_that_a_hook_makes_is_adapted(
    hook: str, lit_class: type, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    def own(self: Any, **_: Any) -> None:
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    module = type("Copies", (lit_class,), {hook: own})()
    lit_trainer(lit_gpart(module="net")).fit(module, lit_loader())
    module.teacher.load_state_dict(module.net.state_dict())
    x = torch.ones(2, 8)
    assert module.eval().teacher(x).equal(module.net(x))


@pytest.mark.parametrize("order", [1, -1])
def test_several_callbacks_leave_the_module_its_own_methods(
    order: int, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Two(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

        def setup(self, stage: str) -> None:
            nn.init.constant_(self.net[0].weight, 0.25)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) + self.other(x)

    methods = [
        lit_gpart(name="a", module="net"),
        lit_gpart(name="b", module="other", modules_to_save=["2"]),
    ]
    module = Two()
    lit_trainer(*methods[::order]).fit(module, lit_loader())
    assert [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")] == []
    assert bool((methods[0].adapter.base_parameters()["0.weight"] == 0.25).all())
