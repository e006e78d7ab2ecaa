"""What a network remembers of the callbacks before: a new callback object takes nothing back that was trained."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from gpart.callbacks import (
    BitFit,
    FullFineTuning,
    LinearProbe,
    PartialFineTuning,
    PeftCallback,
    load_from_checkpoint,
    load_method,
)
from gpart.errors import GPartError

METHODS: dict[str, Callable[..., Any]] = {
    "LinearProbe": lambda **more: LinearProbe(["3"], **more),
    "LORA": lambda **more: PeftCallback("LORA", ["0"], ["3"], {"r": 2}, **more),
}

any_method = pytest.mark.parametrize("method", METHODS)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    now = module.state_dict()
    assert list(now) == list(before)
    return [key for key in now if not torch.equal(now[key], before[key])]


@pytest.fixture
def folder(tmp_path: Path, lit_class: Any, lit_trainer: Any, lit_loader: Any) -> Callable[..., str]:
    """Writes a method's folder, and says where it is."""

    def written(method: str, name: str = "saved") -> str:
        saved = str(tmp_path / name)
        lit_trainer(METHODS[method](save_folder=saved)).fit(lit_class(), lit_loader())
        return saved

    return written


def after_test(module: Any, callback: Any, lit_trainer: Any, lit_loader: Any) -> list[str]:
    """What a test of another trainer has changed."""
    before = bits(module)
    lit_trainer(callback).test(module, lit_loader(), verbose=False)
    return changed(module, before)


@any_method
def test_a_new_callback_does_not_load_the_start_over_what_was_trained(
    method: str, folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    saved = folder(method)
    module = lit_class()
    lit_trainer(METHODS[method](adapter=saved)).fit(module, lit_loader())
    assert after_test(module, METHODS[method](adapter=saved), lit_trainer, lit_loader) == []
    assert after_test(deepcopy(module), METHODS[method](adapter=saved), lit_trainer, lit_loader) == []
    monkeypatch.chdir(tmp_path)
    assert after_test(module, METHODS[method](adapter="saved"), lit_trainer, lit_loader) == []


def test_callbacks_of_configure_callbacks_load_their_start_once(
    folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    saved = folder("LinearProbe")

    class Own(lit_class):
        def configure_callbacks(self) -> list[Callback]:
            return [LinearProbe(["3"], adapter=saved)]

    module, trainer = Own(), lit_trainer()
    trainer.fit(module, lit_loader())
    trained = bits(module)
    trainer.test(module, lit_loader(), verbose=False)
    assert changed(module, trained) == []


def test_a_callback_that_comes_back_to_a_module_does_not_load_again(
    folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    callback = LinearProbe(["3"], adapter=folder("LinearProbe"))
    first, second = lit_class(), lit_class()
    for module in (first, second):
        lit_trainer(callback).fit(module, lit_loader())
    assert after_test(first, callback, lit_trainer, lit_loader) == []


def test_another_folder_is_another_start(folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    one, other = folder("LinearProbe"), folder("LinearProbe", "other")
    module = lit_class()
    lit_trainer(LinearProbe(["3"], adapter=one)).fit(module, lit_loader())
    assert "net.3.weight" in after_test(module, LinearProbe(["3"], adapter=other), lit_trainer, lit_loader)


def test_load_method_reads_its_folder_each_time(folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    saved, module = folder("LinearProbe"), lit_class()
    load_method(module.net, saved)
    loaded = bits(module)
    with torch.no_grad():
        module.net[3].weight.add_(1)
    method = load_method(module.net, saved)
    assert changed(module, loaded) == []
    lit_trainer(method).fit(module, lit_loader())
    assert after_test(module, method, lit_trainer, lit_loader) == []


@any_method
def test_what_a_checkpoint_gave_is_not_replaced_by_where_its_run_began(
    method: str, folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    saved = folder(method)
    keeper = ModelCheckpoint(tmp_path / "kept")
    trainer = lit_trainer(METHODS[method](adapter=saved), keeper, enable_checkpointing=True)
    trainer.fit(lit_class(), lit_loader())
    module = load_from_checkpoint(lit_class, keeper.best_model_path)
    loaded = bits(module)
    trainer.test(module, lit_loader(), verbose=False)
    assert changed(module, loaded) == []
    assert after_test(module, METHODS[method](adapter=saved), lit_trainer, lit_loader) == []
    if method == "LinearProbe":  # another method's folder is not taken for it
        with pytest.raises(ValueError, match="was trained by LinearProbe, this run uses BitFit"):
            lit_trainer(BitFit(["3"], adapter=saved)).test(module, lit_loader(), verbose=False)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_pefts_folder_that_cannot_be_read_is_refused_and_the_network_as_before(
    hook: str, folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module = type("Own", (lit_class,), {hook: lambda *_, **__: None})()
    before, flags = bits(module), [value.requires_grad for value in module.parameters()]
    saved, others = folder("LORA"), PeftCallback("LORA", ["0"], ["3"], {"r": 2, "lora_alpha": 64})
    others.start = saved
    for callback, said in (
        (METHODS["LORA"](adapter=str(tmp_path / "nowhere")), "no adapter of PEFT at .*nowhere"),
        (others, "different settings: lora_alpha is 8 there, 64 here"),
    ):
        with pytest.raises(GPartError, match=said):
            lit_trainer(callback).fit(module, lit_loader())
        assert changed(module, before) == []
        assert [value.requires_grad for value in module.parameters()] == flags
    lit_trainer(METHODS["LORA"](adapter=saved)).test(module, lit_loader(), verbose=False)
    expected = lit_class()
    METHODS["LORA"](adapter=saved).apply(expected.net)
    assert changed(module, bits(expected)) == []


def test_pefts_folder_is_read_into_a_network_that_carries_the_method(
    folder: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    saved, module, expected = folder("LORA"), lit_class(), lit_class()
    METHODS["LORA"](adapter=saved).apply(expected.net)
    lit_trainer(METHODS["LORA"]()).validate(module, lit_loader(), verbose=False)
    lit_trainer(METHODS["LORA"](adapter=saved)).test(module, lit_loader(), verbose=False)
    assert changed(module, bits(expected)) == []


def test_statistics_are_in_the_folder_of_a_callback_that_adopts(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module = lit_class()
    lit_trainer(METHODS["LORA"]()).fit(module, lit_loader())
    lit_trainer(METHODS["LORA"](save_folder=str(tmp_path / "saved"))).fit(module, lit_loader())
    fresh = lit_class()
    METHODS["LORA"](adapter=str(tmp_path / "saved")).apply(fresh.net)
    assert changed(fresh, bits(module)) == []


def test_pefts_second_callback_sets_the_flags_as_the_first(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module = lit_class()
    trainer = lit_trainer(METHODS["LORA"]())
    trainer.fit(module, lit_loader())
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    module.freeze()
    trainer.test(module, lit_loader(), verbose=False)
    trainer.save_checkpoint(tmp_path / "frozen.ckpt")
    assert set(trained) < set(torch.load(tmp_path / "frozen.ckpt", weights_only=True)["state_dict"])
    module.unfreeze()
    before = bits(module)
    lit_trainer(METHODS["LORA"]()).fit(module, lit_loader())
    parameters = dict(module.named_parameters())
    assert [name for name in changed(module, before) if name in parameters] == trained


def test_peft_adapts_anew_what_was_merged(lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module, callback = lit_class(), METHODS["LORA"]()
    lit_trainer(callback).fit(module, lit_loader())
    callback.peft_model.merge_and_unload()
    assert not any("lora" in name for name in module.state_dict())
    for settings in ({"r": 2}, {"r": 3}):
        again = PeftCallback("LORA", ["0"], ["3"], settings)
        lit_trainer(again).fit(module, lit_loader())
        assert again.counts() == (settings["r"] * (8 + 16) + 34, 34)
        again.peft_model.merge_and_unload()


ALL = {"net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"}


def fitted(module: Any, callback: Any, lit_trainer: Any, lit_loader: Any) -> set[str]:
    """The parameters that a trainer of its own has changed."""
    before = bits(module)
    lit_trainer(callback).fit(module, lit_loader())
    return set(changed(module, before)) & {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize(
    ("second", "trained"),
    [
        (FullFineTuning, ALL),
        (lambda: BitFit(["3"]), {"net.0.bias", "net.1.bias", "net.3.weight", "net.3.bias"}),
        (lambda: PartialFineTuning(["0"], ["3"]), {"net.0.weight", "net.3.weight", "net.3.bias"}),
        (lambda: LinearProbe(["1", "3"]), {"net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"}),
    ],
)
def test_a_method_after_a_probe_trains_what_it_names(
    second: Callable[[], Any], trained: set[str], lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    fitted(module, LinearProbe(["3"]), lit_trainer, lit_loader)
    assert fitted(deepcopy(module), second(), lit_trainer, lit_loader) == trained
    assert fitted(module, second(), lit_trainer, lit_loader) == trained
    # And what the model froze itself, before any of them, stays frozen for full fine-tuning.
    module = lit_class()
    module.net[1].weight.requires_grad_(False)
    fitted(module, LinearProbe(["3"]), lit_trainer, lit_loader)
    if second is FullFineTuning:
        assert fitted(module, second(), lit_trainer, lit_loader) == ALL - {"net.1.weight"}


def test_full_fine_tuning_after_a_merge_of_peft_trains_all(lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module, callback = lit_class(), METHODS["LORA"]()
    lit_trainer(callback).fit(module, lit_loader())
    callback.peft_model.merge_and_unload()
    assert fitted(module, FullFineTuning(), lit_trainer, lit_loader) == ALL


def test_full_fine_tuning_holds_what_it_trained_whatever_is_frozen_since(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module, trainer = lit_class(), lit_trainer(FullFineTuning())
    trainer.fit(module, lit_loader())
    for freeze, path in ((module.net[0].requires_grad_, "part.ckpt"), (module.requires_grad_, "all.ckpt")):
        freeze(False)
        trainer.test(module, lit_loader(), verbose=False)
        trainer.save_checkpoint(tmp_path / path)
        assert set(torch.load(tmp_path / path, weights_only=True)["state_dict"]) > ALL
        assert changed(load_from_checkpoint(lit_class, tmp_path / path), bits(module)) == []
    # What the user freezes is trained no more, and what he thaws is.
    module.requires_grad_(True)
    module.net[0].requires_grad_(False)
    assert fitted(module, FullFineTuning(), lit_trainer, lit_loader) == ALL - {"net.0.weight", "net.0.bias"}
    module.requires_grad_(True)
    assert fitted(module, FullFineTuning(), lit_trainer, lit_loader) == ALL


def test_what_a_setup_freezes_is_not_fine_tuned(lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    class Freezing(lit_class):
        def setup(self, stage: str) -> None:
            self.net[0].requires_grad_(False)

    module = Freezing()
    assert fitted(module, FullFineTuning(), lit_trainer, lit_loader) == ALL - {"net.0.weight", "net.0.bias"}
    assert set(lit_trainer(FullFineTuning()).callbacks[0].trained(module.net)) == {
        name.removeprefix("net.") for name in ALL - {"net.0.weight", "net.0.bias"}
    }
