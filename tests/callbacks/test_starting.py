"""``GPartCallback(adapter=...)``: when the numbers to start from are read, and that nothing trained is lost by it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from gpart import GPartConfig, GPartError, active_adapters, attach, get_adapters, load_adapter
from gpart.callbacks import GPartCallback, load_from_checkpoint

TRAINED, START = 3.0, 1.0


@pytest.fixture
def start(tmp_path: Path, lit_class: Any) -> str:
    """An adapter folder all of whose theta is START, with a head."""
    adapter = attach(lit_class().net, GPartConfig(d=10, target_modules=["0"], modules_to_save=["3"]))
    with torch.no_grad():
        adapter.theta.fill_(START)
        for value in adapter.saved_parameters().values():
            value.fill_(START)
    adapter.save(tmp_path / "start")
    return str(tmp_path / "start")


@pytest.fixture
def trained(start: str, lit_class: Any, lit_trainer: Any, lit_loader: Any) -> tuple[Any, Any]:
    """A module that has started from the folder, its theta put to TRAINED since; and its trainer."""
    module = lit_class()
    trainer = lit_trainer(GPartCallback(adapter=start))
    trainer.fit(module, lit_loader())
    with torch.no_grad():
        module.net.gpart.default.theta.fill_(TRAINED)
    return module, trainer


def theta(module: Any) -> Tensor:
    return get_adapters(module.net)["default"].theta.detach()


@pytest.mark.parametrize(
    "way", ["another callback", "a copy", "the callback's copy", "the module's own callback", "back"]
)
def test_a_network_that_has_started_is_not_put_back(
    way: str, start: str, trained: tuple[Any, Any], lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, trainer = trained
    if way == "another callback":
        trainer = lit_trainer(GPartCallback(adapter=start))
    elif way == "another spelling":
        trainer = lit_trainer(GPartCallback(adapter=f"file://{start}/"))
    elif way == "a copy":
        module = copy.deepcopy(module)
    elif way == "the callback's copy":
        trainer = lit_trainer(copy.deepcopy(trainer.callbacks[0]))
    elif way == "the module's own callback":
        module.configure_callbacks = lambda: [GPartCallback(adapter=start)]
        trainer = lit_trainer()
    else:
        trainer.test(lit_class(), lit_loader(), verbose=False)
    trainer.test(module, lit_loader(), verbose=False)
    assert (theta(module) == TRAINED).all()


def test_a_module_that_was_loaded_from_a_checkpoint_keeps_its_numbers(
    start: str, tmp_path: Path, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    keeper = ModelCheckpoint(tmp_path)
    trainer = lit_trainer(GPartCallback(adapter=start), keeper, enable_checkpointing=True)
    trainer.fit(lit_class(), lit_loader())
    loaded = load_from_checkpoint(lit_class, keeper.best_model_path)
    found = theta(loaded).clone()
    assert not (found == START).any()
    with pytest.warns(UserWarning, match=r"keeps its numbers: .*start is not read\. To start from there, detach"):
        trainer.test(loaded, lit_loader(), verbose=False)
    assert torch.equal(theta(loaded), found)


def test_another_folder_is_read(
    start: str, trained: tuple[Any, Any], tmp_path: Path, lit_trainer: Any, lit_loader: Any
) -> None:
    module, _ = trained
    get_adapters(module.net)["default"].save(tmp_path / "other")
    with torch.no_grad():
        theta(module).fill_(7.0)
    with pytest.warns(UserWarning, match=r"was loaded from .*start, and holds the numbers of .*other now"):
        lit_trainer(GPartCallback(adapter=str(tmp_path / "other"))).test(module, lit_loader(), verbose=False)
    assert (theta(module) == TRAINED).all()


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_the_folder_wins_over_a_module_that_loads_its_base_in_a_hook(
    hook: str, start: str, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    base = {key: value.clone() for key, value in lit_class().net.state_dict().items()}

    class Loads(lit_class):
        def setup(self, stage: str) -> None:
            if hook == "setup":
                self.net.load_state_dict(base, strict=False)

        def configure_model(self) -> None:
            if hook == "configure_model":
                self.net.load_state_dict(base, strict=False)

    module = Loads()
    lit_trainer(GPartCallback(adapter=start)).test(module, lit_loader(), verbose=False)
    assert (theta(module) == START).all()
    assert all((value == START).all() for value in module.net[3].parameters())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modules_to_save": ["2"]}, "modules_to_save is"),
        ({"seed": 3}, "seed is 0 and 3"),
        ({"bias": "all"}, "bias is 'none' and 'all'"),
        ({"isometric": False}, "isometric is True and False"),
        ({"dropout": 2.0}, "dropout"),
    ],
)
def test_settings_beside_a_folder_alone_must_agree(
    given: dict[str, Any], said: str, start: str, lit_class: Any, lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    module = lit_class()
    state = state_of(module)
    with pytest.raises(GPartError, match=said):
        lit_trainer(GPartCallback(adapter=start, **given)).test(module, lit_loader(), verbose=False)
    state.assert_kept()


@pytest.mark.parametrize("adopted", [False, True])
def test_dropout_is_the_runs_own(
    adopted: bool, start: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    if adopted:
        attach(module.net, GPartConfig(d=10, target_modules=["0"], modules_to_save=["3"], dropout=0.1))
    callback = lit_gpart(dropout=0.3) if adopted else GPartCallback(adapter=start, dropout=0.3)
    lit_trainer(callback).fit(module, lit_loader())
    assert callback.adapter.config.dropout == callback.adapter.weights.config.dropout == 0.3


def test_a_refused_folder_leaves_the_other_adapter_active(
    start: str, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    attach(module.net, GPartConfig(d=3, target_modules=["0"]), name="a")
    with pytest.raises(GPartError, match="seed is 0 and 3"):
        lit_trainer(GPartCallback(adapter=start, seed=3, name="b")).test(module, lit_loader(), verbose=False)
    assert active_adapters(module.net) == {"a": 1.0}
    assert list(get_adapters(module.net)) == ["a"]


def test_an_adapter_that_the_user_has_frozen_stays_so(
    start: str, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    frozen = load_adapter(module.net, start, name="a")
    for value in (frozen.theta, *frozen.saved_parameters().values()):
        value.requires_grad_(False)
    callback = GPartCallback(d=5, target_modules=["0"], seed=1, name="b")
    lit_trainer(callback).fit(module, lit_loader())
    assert (frozen.theta == START).all()
    assert all((value == START).all() for value in frozen.saved_parameters().values())
    assert callback.adapter.theta.requires_grad


def test_copies_start_with_the_folders_head(start: str, lit_trainer: Any, lit_loader: Any, lit_class: Any) -> None:
    class Momentum(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = copy.deepcopy(self.net)

    module = Momentum()
    callback = GPartCallback(adapter=start, module="net", copies=["teacher"])
    lit_trainer(callback).test(module, lit_loader(), verbose=False)
    assert (get_adapters(module.teacher)["default"].theta == START).all()
    assert all((value == START).all() for value in module.teacher[3].parameters())


def test_after_detach_the_folder_is_read_again(
    start: str, trained: tuple[Any, Any], lit_trainer: Any, lit_loader: Any
) -> None:
    module, trainer = trained
    get_adapters(module.net)["default"].detach()
    lit_trainer(trainer.callbacks[0], max_epochs=0).fit(module, lit_loader())
    assert (theta(module) == START).all()


def test_what_was_merged_is_the_base_of_the_next_fit(
    start: str, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = lit_class(), GPartCallback(adapter=start, merge_at_end=True)
    lit_trainer(callback).fit(module, lit_loader())
    merged = module.net[0].weight.detach().clone()
    lit_trainer(callback, max_epochs=0).fit(module, lit_loader())
    assert not get_adapters(module.net)
    assert torch.equal(module.net[0].weight, merged)
    assert type(module.net[0]) is nn.Linear


def test_a_second_fit_does_not_replace_the_folder_of_what_was_merged(
    tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = lit_class(), lit_gpart(save_folder=str(tmp_path / "out"), merge_at_end=True)
    trainer = lit_trainer(callback)
    trainer.fit(module, lit_loader())
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(GPartError, match=r"an earlier fit has merged .* another save_folder, or none"):
        trainer.fit(module, lit_loader())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_a_fit_without_a_step_leaves_a_folder_as_it_is(
    tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    trainer = lit_trainer(lit_gpart(save_folder=str(tmp_path / "out")))
    trainer.fit(lit_class(), lit_loader())
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.warns(UserWarning, match=r"fit took no step: .*out stays as it is"):
        trainer.fit(lit_class(), lit_loader())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
