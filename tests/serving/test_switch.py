"""After a switch the model computes, to the bit, what it does with that adapter loaded alone."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from releases import needs_compiler
from served_models import Net, spoil, store_adapter
from torch import nn

from gpart import GPartConfig, attach, get_adapters, load_adapter
from gpart.errors import GPartError, GPartFileError
from gpart.serving import AdapterStore, Switch
from gpart.serving import switch as module

X = torch.linspace(-1, 1, 24).view(4, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three of one layout, the last with buffers; three of others."""
    for number, name in enumerate(["anna", "ben"]):
        store_adapter(tmp_path / "all" / name, number)
    store_adapter(tmp_path / "all" / "carl", 2, buffers=True)
    store_adapter(tmp_path / "all" / "seed", 3, seed=5)
    store_adapter(tmp_path / "all" / "first", 4, target_modules=["first"], modules_to_save=None, bias="all", d=4)
    store_adapter(tmp_path / "all" / "plain", 5, isometric=False, dropout=0.5)
    return tmp_path / "all"


@torch.no_grad()
def alone(folder: Path, name: str | None) -> torch.Tensor:
    model = Net()
    if name is not None:
        load_adapter(model, folder / name)
    return model(X)


@torch.no_grad()
def test_every_switch_gives_what_the_adapter_gives_alone(folder: Path, same_bits: Callable[..., bool]) -> None:
    names = [*AdapterStore(folder).names(), None]
    expected = {name: alone(folder, name) for name in names}
    assert len({tuple(value.flatten().tolist()) for value in expected.values()}) == len(names)
    switch = Switch(Net(), AdapterStore(folder))
    for pair in itertools.permutations(names, 2):
        for name in pair:
            switch.use(name)
            assert switch.active == name
            assert same_bits(switch.model(X), expected[name]), pair
            with switch.running() as model:
                assert same_bits(model(X), expected[name]), pair


@pytest.mark.parametrize("indices", ["stored", "computed"])
@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
@torch.no_grad()
def test_the_memory_settings_change_nothing(
    folder: Path, indices: Any, weights: Any, same_bits: Callable[..., bool]
) -> None:
    switch = Switch(Net(), AdapterStore(folder), indices, weights)
    for name in ("anna", "ben", "seed", None, "anna"):
        switch.use(name)
        for _ in range(2):
            assert same_bits(switch.model(X), alone(folder, name))
        with switch.running() as model:
            assert same_bits(model(X), alone(folder, name))


@torch.no_grad()
def test_within_a_layout_the_tensors_stay_and_nothing_is_attached_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch(Net(), AdapterStore(folder))
    switch.use("anna")
    adapter, head = switch.adapter, switch.model.head.weight
    assert adapter is not None
    theta = adapter.theta
    monkeypatch.setattr(module, "attach_plan", lambda *_: pytest.fail("attached"))
    for name in ("ben", None, "carl", "anna", None, None, "ben"):
        switch.use(name)
        assert switch.adapter is adapter
        assert adapter.theta is theta
        assert switch.model.head.weight is head


@torch.no_grad()
def test_heads_and_buffers_go_with_their_adapter(folder: Path) -> None:
    switch, base = Switch(Net(), AdapterStore(folder)), Net()
    switch.use("carl")
    assert not torch.equal(switch.model.norm.running_mean, base.norm.running_mean)
    switch.use("anna")  # has no buffers of its own
    assert torch.equal(switch.model.norm.running_mean, base.norm.running_mean)
    assert not torch.equal(switch.model.head.weight, base.head.weight)
    switch.use("carl")
    switch.use(None)
    assert torch.equal(switch.model.norm.running_mean, base.norm.running_mean)
    assert torch.equal(switch.model.head.weight, base.head.weight)


@torch.no_grad()
def test_a_replaced_adapter_is_used_at_the_next_switch_to_it(folder: Path, same_bits: Callable[..., bool]) -> None:
    switch = Switch(Net(), AdapterStore(folder))
    switch.use("anna")
    before = switch.model(X)
    store_adapter(folder / "anna", 11)
    switch.use("anna")
    assert same_bits(switch.model(X), alone(folder, "anna"))
    assert not same_bits(switch.model(X), before)
    store_adapter(folder / "anna", 11, seed=8)  # now of another layout
    switch.use("anna")
    assert same_bits(switch.model(X), alone(folder, "anna"))


def unfit(folder: Path) -> None:
    """Adapters that are whole but not for this model, or not whole."""
    store_adapter(folder / "other-base", 1, base=1)
    store_adapter(folder / "other-base-and-layout", 1, base=1, seed=9)
    adapter = attach(Net(head=3), GPartConfig(d=7, target_modules=["first", "second"], modules_to_save=["head"]))
    adapter.save(folder / "other-head")
    attach(nn.Sequential(nn.Linear(6, 8)), GPartConfig(d=7, target_modules=["0"])).save(folder / "other-model")
    shutil.copytree(folder / "anna", folder / "broken")
    spoil(folder / "broken")


WRONG = {
    "other-base": "was trained on another base model(?!.*check_base)",  # which a switch has not
    "other-base-and-layout": "was trained on another base model",
    "other-head": r"head.(weight|bias) has shape \[3",
    "other-model": "matches no module",
    "broken": "is broken",
    "none": "there is no adapter 'none'",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("before", ["anna", "carl", "seed", None])
@torch.no_grad()
def test_after_an_error_the_model_computes_what_it_did(
    folder: Path, before: str | None, name: str, same_bits: Callable[..., bool]
) -> None:
    unfit(folder)
    switch = Switch(Net(), AdapterStore(folder))
    switch.use("anna")
    switch.use(before)
    for _ in range(2):
        with pytest.raises(GPartError, match=WRONG[name]):
            switch.use(name)
        assert switch.active == before
        assert same_bits(switch.model(X), alone(folder, before))
    switch.use("ben")
    assert same_bits(switch.model(X), alone(folder, "ben"))


def test_what_does_not_fit_is_found_out_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfit(folder)
    switch, asked = Switch(Net(), AdapterStore(folder)), []
    real = module.plan
    monkeypatch.setattr(module, "plan", lambda *args, **kwargs: asked.append(1) or real(*args, **kwargs))
    for _ in range(3):
        with pytest.raises(GPartError, match="matches no module"):
            switch.use("other-model")
    assert len(asked) == 1


def test_the_bases_fingerprint_is_taken_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = module.check_same
    monkeypatch.setattr(module, "check_same", lambda *args, **more: asked.append(args[3]) or real(*args, **more))
    switch = Switch(Net(), AdapterStore(folder))
    for name in ("anna", "ben", "seed", "carl", "plain", "anna"):
        switch.use(name)
    assert asked == ["adapter 'anna'"]
    switch.use("first")  # has no saved modules, and so another set of frozen parameters
    assert len(asked) == 2


def test_an_adapter_that_is_not_finite_is_refused(folder: Path) -> None:
    from gpart.serialization.folder import write_folder

    adapter = store_adapter(folder / "bad", 1)
    tensors = {"gpart.default.theta": torch.full((7,), float("nan")), **adapter.saved_parameters()}
    write_folder(folder / "bad", adapter.manifest(), {name: value.detach() for name, value in tensors.items()})
    switch = Switch(Net(), AdapterStore(folder))
    with pytest.raises(GPartError, match=r"7 of the 7 numbers .* are NaN or infinite"):
        switch.use("bad")


def test_a_model_with_an_adapter_is_refused(folder: Path) -> None:
    model = Net()
    load_adapter(model, folder / "anna")
    with pytest.raises(GPartError, match=r"without an adapter; this one carries \['default'\]"):
        Switch(model, AdapterStore(folder))


def test_closing_gives_the_base_back(folder: Path, same_bits: Callable[..., bool]) -> None:
    model = Net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    switch = Switch(model, AdapterStore(folder))
    for name in ("carl", "first", "ben"):
        switch.use(name)
    assert switch.close() is model
    assert not get_adapters(model)
    assert type(model.first) is nn.Linear
    assert list(model.state_dict()) == list(state)
    assert all(same_bits(value, state[name]) for name, value in model.state_dict().items())
    switch.use("anna")
    assert switch.active == "anna"


@torch.no_grad()
def test_group_indices_of_layouts_stay_within_their_budget(folder: Path, same_bits: Callable[..., bool]) -> None:
    for seed in range(20, 26):
        store_adapter(folder / f"s{seed}", seed, seed=seed)
    one = 2 * (6 * 8 + 8 * 5)  # int16
    switch = Switch(Net(), AdapterStore(folder), indices="stored", max_index_bytes=2 * one)
    for seed in (20, 21, 22, 20, 23, 24, 25, 20):
        switch.use(f"s{seed}")
        assert same_bits(switch.model(X), alone(folder, f"s{seed}"))
        assert switch.index_bytes <= 3 * one  # the one in use counts when the next one comes
    kept = switch.adapter
    assert kept is not None
    index = kept.weights.index
    switch.use("s25")
    switch.use("s20")
    assert switch.adapter is not None
    assert switch.adapter.weights.index is index  # not computed again


@torch.no_grad()
def test_a_model_that_was_moved_is_followed(folder: Path, same_bits: Callable[..., bool]) -> None:
    switch = Switch(Net(), AdapterStore(folder))
    switch.use("carl")
    switch.model.to(torch.float64).to(torch.float32)  # replaces the buffers
    for name in ("anna", "carl", None):
        switch.use(name)
        assert same_bits(switch.model(X), alone(folder, name))


def test_it_may_be_called_in_inference_mode(folder: Path, same_bits: Callable[..., bool]) -> None:
    switch = Switch(Net(), AdapterStore(folder))
    with torch.inference_mode():
        for name in ("anna", "carl", None, "seed", "ben"):
            switch.use(name)
            assert same_bits(switch.model(X), alone(folder, name))


@needs_compiler
def test_a_swap_under_compile_makes_no_new_graph(folder: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = Net()
    switch = Switch(torch.compile(model, backend=counter), AdapterStore(folder))
    switch.use("anna")
    with torch.no_grad():
        switch.model(X)
        graphs = counter.frame_count
        assert graphs > 0
        for name in ("ben", "carl", "anna", "carl", "ben"):
            switch.use(name)
            torch.testing.assert_close(switch.model(X), alone(folder, name))
        assert counter.frame_count == graphs
        switch.use("seed")  # another layout has other group indices, and a graph of its own
        torch.testing.assert_close(switch.model(X), alone(folder, "seed"))
        assert counter.frame_count > graphs
    torch._dynamo.reset()


def test_nothing_is_known_of_a_file_error_as_another(folder: Path) -> None:
    with pytest.raises(GPartFileError):
        Switch(Net(), AdapterStore(folder)).use("none")
