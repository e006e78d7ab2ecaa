"""Checkpoints: what they hold, who writes them, what they refuse, and that a whole one is always there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn

from gpart import GPartError, load_adapter
from gpart.callbacks import AtomicCheckpointIO, GPartCallback, GPartCheckpointIO, LinearProbe, load_from_checkpoint

HINT = "This checkpoint holds an adapter: read it with gpart.callbacks.load_from_checkpoint(cls, path)"
TRAINED = ["net.3.weight", "net.3.bias", "net.0.gpart.default.theta"]
BUFFERS = ["net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"]


def bits(module: LightningModule) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_bits(module: LightningModule, expected: dict[str, Tensor]) -> None:
    found = module.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


# What it holds


def test_it_holds_what_is_trained_and_nothing_else(lit_any: Any, lit_fitted: Any, lit_class: Any) -> None:
    _, _, path = lit_fitted(lit_any())
    checkpoint = torch.load(path, weights_only=True)
    assert sorted(checkpoint["state_dict"]) == sorted([*TRAINED, *BUFFERS, HINT])
    (optimizer,) = checkpoint["optimizer_states"]
    sizes = {"net.3.weight": 32, "net.3.bias": 2, "net.0.gpart.default.theta": 10}
    assert sorted(s["exp_avg"].numel() for s in optimizer["state"].values()) == sorted(sizes.values())
    assert set(checkpoint["gpart"]) == {"module", "copies", "manifest", "sha256", "hint"}
    random = checkpoint["callbacks"].pop("RandomStates")
    assert 5_000 < sum(value.numel() * value.element_size() for value in tensors(random)) < 8_000
    # Nowhere else is a tensor as large as the frozen weight, nor one with the frozen bias's or BatchNorm's values.
    base = lit_class().net
    frozen = [base[0].weight, base[0].bias, base[1].weight, base[1].bias]
    for found in tensors(checkpoint):
        assert found.numel() < 128
        assert not [kept for kept in frozen if found.shape == kept.shape and torch.equal(found, kept)]
    assert path.stat().st_size < 12_000 + 14_000


def test_a_network_that_is_the_whole_module(lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    class Whole(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.norm, self.two = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.two(self.norm(self.one(batch[0]))), batch[1])

        test_step = training_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    def callback() -> GPartCallback:
        return GPartCallback(d=5, target_modules=["one"], modules_to_save=["two"])

    module, path = Whole(), tmp_path / "whole.ckpt"
    trainer = lit_trainer(callback())
    trainer.fit(module, lit_loader())
    trainer.save_checkpoint(path)
    norm = [f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    keys = ["two.weight", "two.bias", "gpart.default.theta", *norm, HINT]
    assert sorted(torch.load(path, weights_only=True)["state_dict"]) == sorted(keys)
    fresh = Whole()
    lit_trainer(callback()).test(fresh, lit_loader(), ckpt_path=path, verbose=False)
    assert_bits(fresh, bits(module))
    assert_bits(load_from_checkpoint(Whole, path), bits(module))


def test_a_second_name_outside_the_adapted_module_brings_nothing_in(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Aliased(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.net[0]

    trainer = lit_trainer(lit_gpart(module="net"))
    trainer.fit(Aliased(), lit_loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert [key for key in state if key.startswith("first")] == ["first.gpart.default.theta"]


def test_a_module_that_leaves_frozen_weights_out_itself(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    """Lightning's documentation shows this, with ``strict_loading``."""

    class Filters(lit_class):
        strict_loading = False

        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            fixed = {name for name, value in self.named_parameters() if not value.requires_grad}
            return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key not in fixed}

    module, path = Filters(), tmp_path / "a.ckpt"
    trainer = lit_trainer(lit_gpart())
    trainer.fit(module, lit_loader())
    trainer.save_checkpoint(path)
    fresh = Filters()
    lit_trainer(lit_gpart()).test(fresh, lit_loader(), ckpt_path=path, verbose=False)
    assert_bits(fresh, bits(module))


def test_weights_only_best_and_the_later_stages(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    keeper = ModelCheckpoint(tmp_path, monitor="val/loss", save_weights_only=True)
    module = lit_any()
    trainer = lit_trainer(lit_gpart(), keeper, enable_checkpointing=True, max_epochs=2)
    trainer.fit(module, lit_loader(), lit_loader())
    checkpoint = torch.load(keeper.best_model_path, weights_only=True)
    assert sorted(checkpoint["state_dict"]) == sorted([*TRAINED, *BUFFERS, HINT])
    assert "optimizer_states" not in checkpoint
    best = {key: checkpoint["state_dict"][key] for key in (*TRAINED, *BUFFERS)}
    for stage in ("test", "validate", "predict"):
        fresh = lit_any()
        getattr(lit_trainer(lit_gpart()), stage)(fresh, lit_loader(), ckpt_path=keeper.best_model_path)
        for key, value in best.items():
            assert torch.equal(fresh.state_dict()[key], value), (stage, key)
    with torch.no_grad():
        module.net.gpart.default.theta.zero_()
    trainer.test(module, lit_loader(), ckpt_path="best", verbose=False)
    assert torch.equal(module.net.gpart.default.theta, best[TRAINED[2]])


def test_half_precision_weights_go_on_as_float32_ones(
    lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, _, path = lit_fitted(precision="bf16-true")
    assert torch.load(path, weights_only=True)["state_dict"][TRAINED[2]].dtype == torch.float32
    fresh = lit_class()
    lit_trainer(lit_gpart()).test(fresh, lit_loader(), ckpt_path=path, verbose=False)
    assert torch.equal(fresh.net.gpart.default.theta, module.net.gpart.default.theta)
    assert fresh.net[0].weight.dtype == fresh.net[3].weight.dtype == torch.float32
    assert torch.equal(fresh.net[3].weight, module.net[3].weight.float())


# Lightning's own searches write and read checkpoints


@pytest.mark.parametrize("way", ["tuner", "callback"])
def test_lr_find_sets_the_rate_and_leaves_every_bit(
    way: str, lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    starts: list[dict[str, Tensor]] = []

    class Looks(lit_any):
        def on_train_start(self) -> None:
            starts.append(bits(self))

    module = Looks()
    settings = {"default_root_dir": tmp_path, "enable_checkpointing": True}
    if way == "tuner":
        trainer = lit_trainer(lit_gpart(), **settings)
        Tuner(trainer).lr_find(module, lit_loader(), num_training=20)
        assert_bits(module, starts[0])
        assert module.lr != 1e-2
    else:
        trainer = lit_trainer(LearningRateFinder(num_training_steps=20), lit_gpart(), **settings)
    trainer.fit(module, lit_loader())
    assert module.lr != 1e-2
    assert len(starts) == 2  # the search's and the training's
    assert not starts[0]["net.0.gpart.default.theta"].any()
    for key, value in starts[0].items():
        assert torch.equal(starts[1][key], value), key
    assert module.net.gpart.default.theta.count_nonzero() == 10
    assert not list(tmp_path.rglob(".lr_find*"))


def test_the_batch_size_search_leaves_every_bit(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Sized(lit_class):
        batch_size = 2
        starts: list[dict[str, Tensor]] = []  # noqa: RUF012

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(lit_loader().dataset, batch_size=self.batch_size)

        val_dataloader = train_dataloader

        def on_train_start(self) -> None:
            self.starts.append(bits(self))

    module = Sized()
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=1)
    lit_trainer(lit_gpart(), finder, default_root_dir=tmp_path).fit(module)
    assert module.batch_size > 2
    assert len(module.starts) > 1
    for key, value in module.starts[0].items():
        assert torch.equal(module.starts[-1][key], value), key


def test_what_is_saved_on_an_exception_can_be_read(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Fails(lit_class):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 2:
                raise RuntimeError("on purpose")
            return super().training_step(batch, index)

    module = Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        lit_trainer(OnExceptionCheckpoint(tmp_path), lit_gpart(), enable_checkpointing=True).fit(module, lit_loader())
    path = tmp_path / "on_exception.ckpt"
    assert sorted(torch.load(path, weights_only=True)["state_dict"]) == sorted([*TRAINED, *BUFFERS, HINT])
    assert_bits(load_from_checkpoint(lit_class, path), bits(module))


# What is refused


def pop(*keys: str) -> Any:
    def change(checkpoint: dict[str, Any]) -> None:
        for key in keys:
            del checkpoint["state_dict"][key]

    return change


def put(key: str, value: Tensor) -> Any:
    return lambda checkpoint: checkpoint["state_dict"].update({key: value})


def edit(**manifest: Any) -> Any:
    return lambda checkpoint: checkpoint["gpart"]["manifest"].update(manifest)


def same(checkpoint: dict[str, Any]) -> None:
    pass


REFUSED: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "theta missing": (pop(TRAINED[2]), {}, {}, r"keys missing \['0\.gpart\.default\.theta'\], keys too many \[\]"),
    "head missing": (pop(*TRAINED[:2]), {}, {}, r"keys missing \['3\.bias', '3\.weight'\]"),
    "buffer missing": (pop(BUFFERS[0]), {}, {}, r"keys missing \['1\.running_mean'\]"),
    "key too many": (put("net.4.weight", torch.ones(1)), {}, {}, r"missing \[\], keys too many \['4\.weight'\]"),
    "theta's shape": (put(TRAINED[2], torch.ones(9)), {}, {}, r"theta has shape \[9\], here \[10\]"),
    "head's shape": (put(TRAINED[0], torch.ones(2, 15)), {}, {}, r"3\.weight has shape \[2, 15\], here \[2, 16\]"),
    "theta infinite": (put(TRAINED[2], torch.full((10,), torch.inf)), {}, {}, "10 of the 10 numbers .* infinite"),
    "theta of integers": (put(TRAINED[2], torch.ones(10, dtype=torch.long)), {}, {}, "holds torch.int64"),
    "another base": (same, {"base": 1}, {}, r"another base model: fingerprint \w{64}, this model has \w{64}"),
    "another width": (same, {"width": 17}, {}, r"\[16, 8\].*\[17, 8\]"),
    "another d": (same, {}, {"d": 9}, "different settings: d is 10 and 9"),
    "another seed": (same, {}, {"seed": 7}, "seed is 0 and 7"),
    "another scaling": (same, {}, {"isometric": False}, "isometric is True and False"),
    "another name": (same, {}, {"name": "second"}, "holds adapter 'default', the model carries 'second'"),
    "another submodule": (same, {}, {"module": ""}, "adapts submodule 'net', here it is ''|matches no module"),
    "another scheme": (edit(scheme="gpart-v0"), {}, {}, "scheme 'gpart-v0'; this version knows 'gpart-v1'"),
    "another D": (edit(size=127), {}, {}, "D = 127, this model has D = 128"),
    "other weights": (edit(weights=[["9.weight", [16, 8]]]), {}, {}, r"only there .*9\.weight.*only here .*0\.weight"),
    "no config": (edit(config=None), {}, {}, "no settings under 'config': None"),
    "no manifest": (lambda c: c["gpart"].pop("manifest"), {}, {}, "is no adapter's"),
    "no entry": (
        lambda c: c.pop("gpart"),
        {},
        {},
        "holds no adapter that can be checked: it has net.0.gpart.default.theta",
    ),
    "an entry of another kind": (lambda c: c.update(gpart=[1]), {}, {}, "holds no adapter"),
}


def refuse(kind: str, lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    change, other, method, said = REFUSED[kind]
    _, _, path = lit_fitted()
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    module, callback = lit_class(**other), lit_gpart(**method)
    live = lit_trainer(callback)
    live.test(module, lit_loader(), verbose=False)
    before = bits(module)
    with pytest.raises(ValueError, match=rf"{path.name}.*({said})"):
        live.test(module, lit_loader(), ckpt_path=path, verbose=False)
    assert_bits(module, before)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "another submodule"])
def test_it_is_refused_by_name_and_the_live_model_kept(
    kind: str, lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    refuse(kind, lit_fitted, lit_class, lit_gpart, lit_trainer, lit_loader)


def test_another_submodule_is_refused(lit_fitted: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    _, _, path = lit_fitted()
    whole = GPartCallback(d=10, target_modules=["net.0"], modules_to_save=["net.3"], module="")
    with pytest.raises(ValueError, match="adapts submodule 'net', here it is ''"):
        lit_trainer(whole).test(lit_class(), lit_loader(), ckpt_path=path, verbose=False)


@pytest.mark.parametrize("kind", ["theta missing", "head's shape", "another base", "another scheme", "no entry"])
def test_the_functions_refuse_the_same(kind: str, lit_fitted: Any, lit_class: Any, state_of: Any) -> None:
    change, other, _, _ = REFUSED[kind]
    _, _, path = lit_fitted()
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=path.name):
        load_from_checkpoint(lit_class, path, **other)
    network = lit_class(**other).net
    state = state_of(network)
    with pytest.raises(ValueError, match=path.name):
        load_adapter(network, path)
    state.assert_kept()


def test_the_probes_and_gparts_are_not_taken_for_each_other(
    lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    for mine, other, said in (
        (lit_gpart, lambda: LinearProbe(["3"]), "was trained by GPart, this run uses LinearProbe"),
        (
            lambda: LinearProbe(["3"]),
            lit_gpart,
            r"is no adapter's: it needs .*holds \['base', 'format', 'method', 'settings', 'trained'\]",
        ),
    ):
        _, _, path = lit_fitted(method=mine())
        module, live = lit_class(), lit_trainer(other())
        live.test(module, lit_loader(), verbose=False)
        before = bits(module)
        with pytest.raises(ValueError, match=rf"{path.name}.*{said}"):
            live.fit(module, lit_loader(), ckpt_path=path)
        assert_bits(module, before)


def test_a_missing_file_and_a_folder_are_named(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        lit_trainer(lit_gpart()).predict(lit_class(), [], ckpt_path=tmp_path / "nothing.ckpt")
    with pytest.raises(ValueError, match="directory"):
        lit_trainer(lit_gpart()).predict(lit_class(), [], ckpt_path=tmp_path)


# Damage, and code in files


@pytest.fixture
def live(lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> tuple[Any, ...]:
    """A checkpoint's path, an adapted module with other values, and a function that loads a file into it."""
    _, _, path = lit_fitted()
    module, trainer = lit_class(), lit_trainer(lit_gpart())
    trainer.test(module, lit_loader(), verbose=False)

    def load() -> None:
        trainer.test(module, lit_loader(), ckpt_path=path, verbose=False)

    return path, module, load


def test_a_truncated_file_is_refused_wherever_it_ends(live: tuple[Any, ...]) -> None:
    path, module, load = live
    content, before = path.read_bytes(), bits(module)
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read as a checkpoint"):
            load()
        assert_bits(module, before)


def test_a_flipped_bit_in_theta_is_refused(live: tuple[Any, ...]) -> None:
    path, module, load = live
    content, before = bytearray(path.read_bytes()), bits(module)
    theta = torch.load(path, weights_only=True)["state_dict"][TRAINED[2]]
    content[content.index(theta.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        load()
    assert_bits(module, before)


def test_no_flipped_bit_changes_what_is_loaded(live: tuple[Any, ...]) -> None:
    path, module, load = live
    content = path.read_bytes()
    load()
    good = bits(module)
    for at in range(0, len(content), len(content) // 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with suppress(ValueError):
            load()
        assert_bits(module, good)


def test_a_file_that_claims_to_span_disks_is_refused(live: tuple[Any, ...]) -> None:
    """Python's zipfile raises for it where it is only asked whether the file is one."""
    path, module, load = live
    content, before = bytearray(path.read_bytes()), bits(module)
    locator = content.rindex(b"PK\x06\x07")  # the 64-bit end record's: 4 bytes, disk, offset, number of disks
    content[locator + 16] = 9
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step=4\.ckpt.*multiple disks"):
        load()
    assert_bits(module, before)


@pytest.mark.parametrize("place", ["optimizer", "weights beside an average"])
def test_a_flipped_bit_elsewhere_is_refused(
    place: str, lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted(None, None, EMAWeightAveraging(decay=0.5))
    checkpoint, content = torch.load(path, weights_only=True), bytearray(path.read_bytes())
    moments = [state["exp_avg"] for state in checkpoint["optimizer_states"][0]["state"].values()]
    values = {value.numel(): value for value in moments}[10]
    if place != "optimizer":
        values = checkpoint["current_model_state"][TRAINED[2]]
    content[content.index(values.numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    again = lit_trainer(EMAWeightAveraging(decay=0.5), lit_gpart(), max_epochs=2)
    with pytest.raises(ValueError, match=path.name):
        again.fit(lit_class(), lit_loader(), ckpt_path=path)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks", "gpart"])
def test_nothing_in_a_file_is_run(
    place: str, live: tuple[Any, ...], lit_class: Any, lit_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, module, load = live
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[place]["evil"] = Malicious()
    torch.save(checkpoint, path)
    before = bits(module)
    for attempt in (
        load,
        lambda: load_from_checkpoint(lit_class, path),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} (cannot be read|was changed|holds)"):
            attempt()
    for attempt in (
        lambda: load_adapter(lit_class().net, path),
        lambda: lit_trainer(GPartCallback(adapter=str(path))).predict(lit_class(), []),
    ):
        with suppress(GPartError):  # the adapter is read past objects that are no part of it
            attempt()
    assert_bits(module, before)
    assert not Path("executed").exists()
    torch.load(path, weights_only=False)
    assert Path("executed").exists()  # so the test's file does what it says


# Back to a module


@pytest.mark.parametrize("where", ["init", "configure_model"])
def test_load_from_checkpoint_gives_the_module_back(where: str, lit_built_in: Any, lit_fitted: Any) -> None:
    module, _, path = lit_fitted(lit_built_in[where](lr=0.03))
    loaded = load_from_checkpoint(lit_built_in[where], path)
    assert loaded.built == 1
    assert loaded.lr == 0.03
    assert_bits(loaded, bits(module))
    x = torch.randn(5, 8)
    assert torch.equal(loaded.eval()(x), module.eval()(x))
    assert load_from_checkpoint(lit_built_in[where], path, lr=0.5).lr == 0.5


def test_load_from_checkpoint_on_another_base_is_asked_for(lit_class: Any, lit_fitted: Any) -> None:
    module, _, path = lit_fitted()
    with pytest.raises(ValueError, match="another base"):
        load_from_checkpoint(lit_class, path, base=1)
    with pytest.warns(UserWarning, match="check_base=False"):
        loaded = load_from_checkpoint(lit_class, path, base=1, check_base=False)
    assert torch.equal(loaded.net.gpart.default.theta, module.net.gpart.default.theta)
    assert not torch.equal(loaded.net[0].bias, module.net[0].bias)


def test_load_from_checkpoint_says_what_to_do_where_setup_builds(lit_built_in: Any, lit_fitted: Any) -> None:
    _, _, path = lit_fitted(lit_built_in["setup"]())
    with pytest.raises(ValueError, match=r"adapts submodule 'net'.*in __init__ or configure_model.*as ckpt_path"):
        load_from_checkpoint(lit_built_in["setup"], path)


def test_lightnings_own_readers_lead_to_ours(lit_any: Any, lit_fitted: Any, lit_trainer: Any, lit_loader: Any) -> None:
    _, _, path = lit_fitted(lit_any())
    with pytest.raises(RuntimeError, match=r"gpart\.callbacks\.load_from_checkpoint\(cls, path\)"):
        lit_any.load_from_checkpoint(path)
    with pytest.raises(RuntimeError, match=r"gpart\.callbacks\.load_from_checkpoint\(cls, path\)"):
        lit_trainer().test(lit_any(), lit_loader(), ckpt_path=path, verbose=False)


# Who writes


class Memory(CheckpointIO):
    """A user's plugin that shares nothing with Lightning's: checkpoints in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.files[str(path)] = {
            **checkpoint,
            "state_dict": {k: v.clone() for k, v in checkpoint["state_dict"].items()},
        }

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return dict(self.files[str(path)])

    def remove_checkpoint(self, path: Any) -> None:
        del self.files[str(path)]


def test_a_users_own_plugin_gets_the_filtered_and_is_filled(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    memory, module = Memory(), lit_class()
    keeper = ModelCheckpoint(tmp_path, save_top_k=1, monitor="step", mode="max", every_n_train_steps=1)
    trainer = lit_trainer(lit_gpart(), keeper, enable_checkpointing=True, plugins=[memory])
    trainer.fit(module, lit_loader())
    (name,) = memory.files  # the older ones were removed
    assert sorted(memory.files[name]["state_dict"]) == sorted([*TRAINED, *BUFFERS, HINT])
    fresh = lit_class()
    lit_trainer(lit_gpart(), plugins=[memory]).test(fresh, lit_loader(), ckpt_path=name, verbose=False)
    assert_bits(fresh, bits(module))


class Own(AtomicCheckpointIO):
    pass


PLUGINS = {
    "none": list,
    "ours": lambda: [GPartCheckpointIO()],
    "async": lambda: [AsyncCheckpointIO()],
    "ours around async": lambda: [GPartCheckpointIO(AsyncCheckpointIO())],
    "async around a user's": lambda: [AsyncCheckpointIO(Own())],
    "a user's": lambda: [Own()],
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_every_way_of_writing_is_filtered_and_atomic(
    kind: str, lit_class: Any, lit_fitted: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    written: list[str] = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(
        AtomicCheckpointIO, "save_checkpoint", lambda *a, **k: (written.append(type(a[0])), save(*a, **k))
    )
    plugins = PLUGINS[kind]()
    module, trainer, path = lit_fitted(plugins=plugins)
    assert isinstance(trainer.strategy.checkpoint_io, GPartCheckpointIO)
    if plugins and isinstance(plugins[0], GPartCheckpointIO):
        assert trainer.strategy.checkpoint_io is plugins[0]
    assert written == [Own if "user" in kind else AtomicCheckpointIO]
    assert sorted(torch.load(path, weights_only=True)["state_dict"]) == sorted([*TRAINED, *BUFFERS, HINT])
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, lit_loader())  # a second fit by the same trainer writes, removes and tears down again
    (newest,) = path.parent.iterdir()
    assert newest.name == "step=8.ckpt"
    fresh = lit_class()
    lit_trainer(lit_gpart(), plugins=PLUGINS[kind]()).test(fresh, lit_loader(), ckpt_path=newest, verbose=False)
    assert_bits(fresh, bits(module))


def test_a_plugin_without_a_method_writes_everything(tmp_path: Path) -> None:
    plugin = GPartCheckpointIO()
    plugin.save_checkpoint({"state_dict": {"a": torch.ones(2)}, "n": 1}, tmp_path / "a.ckpt")
    found = plugin.load_checkpoint(tmp_path / "a.ckpt")
    assert list(found) == ["state_dict", "n"]
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))


# A whole one is always there


class Slow(AtomicCheckpointIO):
    """Writes slowly, notes what it does, and fails from a given write on."""

    def __init__(self, fails_from: int = 99) -> None:
        self.fails_from, self.events, self.count = fails_from, [], 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.count += 1
        time.sleep(0.2)
        if self.count >= self.fails_from:
            raise OSError("disk full")
        super().save_checkpoint(checkpoint, path)
        self.events.append(("whole", Path(path).name))

    def remove_checkpoint(self, path: Any) -> None:
        self.events.append(("removed", Path(path).name))
        super().remove_checkpoint(path)


def fit_slowly(slow: Slow, folder: Path, module: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    newest = ModelCheckpoint(folder, "{step}", monitor="step", mode="max", save_top_k=1, every_n_train_steps=1)
    plugins = [AsyncCheckpointIO(slow)]
    lit_trainer(lit_gpart(), newest, enable_checkpointing=True, plugins=plugins).fit(module, lit_loader())


def test_the_older_goes_when_the_newer_is_whole(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    slow = Slow()
    fit_slowly(slow, tmp_path, lit_class(), lit_gpart, lit_trainer, lit_loader)
    first, second, third = (f"step={step}.ckpt" for step in (1, 2, 3))
    assert slow.events == [
        ("whole", first),
        ("whole", second),
        ("removed", first),
        ("whole", third),
        ("removed", second),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [third]


def test_the_older_stays_when_the_newer_is_not_written(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    slow = Slow(fails_from=2)
    with pytest.raises(OSError, match="disk full"):
        fit_slowly(slow, tmp_path, lit_class(), lit_gpart, lit_trainer, lit_loader)
    assert slow.events == [("whole", "step=1.ckpt")]
    assert [path.name for path in tmp_path.iterdir()] == ["step=1.ckpt"]
    assert load_from_checkpoint(lit_class, tmp_path / "step=1.ckpt").net.gpart.default.theta.any()


def test_what_could_not_be_saved_holds_no_removal_back(tmp_path: Path) -> None:
    plugin, old, new = GPartCheckpointIO(), tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    plugin.save_checkpoint({"a": 1}, old)
    with pytest.raises((PicklingError, AttributeError)), pytest.warns(UserWarning, match="weights_only=False"):
        plugin.save_checkpoint({"a": lambda: 0}, new)
    plugin.save_checkpoint({"a": 2}, new)
    plugin.remove_checkpoint(old)
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]


class Forgiving(AsyncCheckpointIO):
    """A user's plugin that goes on where a write fails, and says nothing."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with suppress(OSError):
            self.checkpoint_io.save_checkpoint(*args, **kwargs)


def test_a_failure_that_nobody_hears_of_keeps_the_older_and_later_ones_go(tmp_path: Path) -> None:
    slow = Slow(fails_from=2)
    plugin = GPartCheckpointIO(Forgiving(slow))
    old, new, newest = (tmp_path / f"{name}.ckpt" for name in ("old", "new", "newest"))
    plugin.save_checkpoint({"a": 1}, old)
    plugin.save_checkpoint({"a": 2}, new)
    plugin.remove_checkpoint(old)
    plugin.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
    slow.fails_from = 99  # the next fit by the same trainer, and there is space again
    plugin.save_checkpoint({"a": 3}, new)
    plugin.save_checkpoint({"a": 4}, newest)
    plugin.remove_checkpoint(new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest.ckpt", "old.ckpt"]


class Halfway(dict):
    """A value that raises when it is written, after much else is."""

    def __reduce__(self) -> Any:
        raise RuntimeError("halfway")


def test_an_exception_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"n": 1}, path)
    content = path.read_bytes()
    with pytest.raises(RuntimeError, match="halfway"):
        AtomicCheckpointIO().save_checkpoint({"n": torch.ones(10_000), "x": Halfway()}, path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_file_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))

    def replacing(source: Any, target: Any) -> None:
        assert Path(source).parent == Path(target).parent  # a rename, never a copy between file systems
        assert torch.load(source, weights_only=True) == {"n": 1}
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    AtomicCheckpointIO().save_checkpoint({"n": 1}, tmp_path / "deep" / "a.ckpt")
    assert done == ["fsync", "replace"]


KILLED = """
import os, signal, sys, torch
from gpart.callbacks import AtomicCheckpointIO
def halfway(value, file):
    file.write(b"PK" * 50_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = halfway
AtomicCheckpointIO().save_checkpoint({"n": 2}, sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_process_killed_while_writing_leaves_the_old_file(lit_fitted: Any, lit_class: Any) -> None:
    module, _, path = lit_fitted()
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=100, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_bytes() == before
    assert_bits(load_from_checkpoint(lit_class, path), bits(module))
    (left,) = [file for file in path.parent.iterdir() if file != path]
    assert left.suffix == ".part"  # never taken for a checkpoint
    AtomicCheckpointIO().save_checkpoint({"n": 3}, path)
    assert torch.load(path, weights_only=True) == {"n": 3}


def test_an_averages_checkpoint_holds_no_frozen_weight_twice(
    lit_class: Any, lit_fitted: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted(None, None, EMAWeightAveraging(decay=0.5))
    checkpoint = torch.load(path, weights_only=True)
    assert sorted(checkpoint["state_dict"]) == sorted([*TRAINED, *BUFFERS, HINT])
    assert sorted(checkpoint["current_model_state"]) == sorted([*TRAINED, *BUFFERS])
    assert not torch.equal(checkpoint["current_model_state"][TRAINED[2]], checkpoint["state_dict"][TRAINED[2]])

    class Looks(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for key, value in checkpoint["current_model_state"].items():
                assert torch.equal(pl_module.state_dict()[key], value), key
            averaged = average._average_model.module.state_dict()
            for key in (*TRAINED, *BUFFERS):
                assert torch.equal(averaged[key], checkpoint["state_dict"][key]), key

    average = EMAWeightAveraging(decay=0.5)
    again = lit_trainer(average, lit_gpart(), Looks(), max_epochs=2)
    again.fit(lit_class(), lit_loader(), ckpt_path=path)
    assert again.global_step == 8
